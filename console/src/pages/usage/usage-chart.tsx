/** Draws usage by day; loaded only when it is shown, since the library of charts is large. */

import "@mantine/charts/styles.css";

import { BarChart } from "@mantine/charts";

import type { components } from "#api/models";
import { useFormat, useLanguage, useStrings } from "#/language";
import type { MEASURES } from "#/pages/usage";
import { strings } from "#/pages/usage/strings";

interface Props {
  groups: readonly components["schemas"]["GroupBody"][];
  measure: (typeof MEASURES)[number];
  from: string;
  last: string;
}

export default function UsageChart({ groups, measure, from, last }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const { language } = useLanguage();
  const label = new Intl.DateTimeFormat(language, { month: "short", day: "numeric", timeZone: "UTC" });
  const days = new Map(groups.map((group) => [group.day, group]));
  const data: Record<string, string | number>[] = [];
  for (let time = Date.parse(`${from}T00:00:00Z`); time <= Date.parse(`${last}T00:00:00Z`); time += 86_400_000) {
    const group = days.get(new Date(time).toISOString().slice(0, 10));
    const renders = Number(group?.render_cost_usd ?? 0);
    data.push({
      day: label.format(time),
      text: Number(group?.cost_usd ?? 0) - renders,
      renders,
      calls: group?.calls ?? 0,
      input: group?.input_tokens ?? 0,
      output: group?.output_tokens ?? 0,
    });
  }
  const series = {
    cost: [{ name: "text", label: t.textCost, color: "indigo.6" }, { name: "renders", label: t.renderCost, color: "teal.6" }],
    calls: [{ name: "calls", label: t.calls, color: "indigo.6" }],
    tokens: [{ name: "input", label: t.inputTokens, color: "indigo.6" }, { name: "output", label: t.outputTokens, color: "orange.6" }],
  }[measure];
  return (
    <div role="img" aria-label={t.chartLabel(t[measure])}>
      <BarChart
        h={260} data={data} dataKey="day" type="stacked" series={series} withLegend={series.length > 1}
        valueFormatter={measure === "cost" ? format.usd : format.number} yAxisProps={{ width: 72 }}
        barProps={{ isAnimationActive: false }} maxBarWidth={40} barChartProps={{ accessibilityLayer: false }}
      />
    </div>
  );
}
