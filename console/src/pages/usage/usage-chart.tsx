/** Draws usage by day as stacked bars of plain elements; a library of charts would be larger than all pages together. */

import "./usage-chart.css";

import { type PointerEvent, useState } from "react";

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

interface Series {
  label: string;
  color: string;
}

interface Day {
  label: string;
  /** One for each series. */
  values: number[];
}

const DAY_MILLISECONDS = 86_400_000;
const MAX_LABELS = 10;
const MAX_LINES = 5;

export function UsageChart({ groups, measure, from, last }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const { language } = useLanguage();
  const [pointed, setPointed] = useState<number | null>(null);
  const series: Series[] = {
    cost: [{ label: t.textCost, color: "indigo-6" }, { label: t.renderCost, color: "teal-6" }],
    calls: [{ label: t.calls, color: "indigo-6" }],
    tokens: [{ label: t.inputTokens, color: "indigo-6" }, { label: t.outputTokens, color: "orange-6" }],
  }[measure];
  const write = measure === "cost" ? format.usd : format.number;
  const days = readDays(groups, measure, from, last, language);
  const lines = chooseLines(Math.max(...days.map(({ values }) => sum(values))));
  const top = lines.at(-1)!;
  const every = Math.ceil(days.length / MAX_LABELS);
  const shown = pointed === null ? undefined : days[pointed];
  const point = (event: PointerEvent<HTMLElement>) => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    setPointed(Math.min(days.length - 1, Math.max(0, Math.floor(((event.clientX - left) / width) * days.length))));
  };
  return (
    <div role="img" aria-label={t.chartLabel(t[measure])} className="usage-chart">
      {series.length > 1 && (
        <div className="usage-legend">
          {series.map((one) => <span key={one.label}><Swatch color={one.color} />{one.label}</span>)}
        </div>
      )}
      <div className="usage-plot" onPointerMove={point} onPointerDown={point} onPointerLeave={() => setPointed(null)}>
        {lines.map((value) => (
          <div key={value} className="usage-line" style={{ bottom: `${(100 * value) / top}%` }}><span>{write(value)}</span></div>
        ))}
        {days.map(({ label, values }, index) => (
          <div key={index} className="usage-day" data-pointed={index === pointed || undefined}>
            {values.map((value, which) => value > 0 && (
              <div
                key={which} className="usage-bar"
                style={{ height: `${(100 * value) / top}%`, background: `var(--mantine-color-${series[which]!.color})` }}
              />
            ))}
            {index % every === 0 && (
              <span className="usage-label" data-extra={index % (3 * every) > 0 || undefined}>{label}</span>
            )}
          </div>
        ))}
        {shown && (
          <div className="usage-tip" style={placeTip(pointed!, days.length)}>
            <strong>{shown.label}</strong>
            {series.map(({ label, color }, which) => (
              <div key={label}><Swatch color={color} />{label}<span>{write(shown.values[which]!)}</span></div>
            ))}
          </div>
        )}
      </div>
    </div>
  );
}

function Swatch({ color }: { color: string }) {
  return <i style={{ background: `var(--mantine-color-${color})` }} />;
}

/** Return all days of the range, also those without usage. */
function readDays(
  groups: Props["groups"], measure: Props["measure"], from: string, last: string, language: string,
): Day[] {
  const name = new Intl.DateTimeFormat(language, { month: "short", day: "numeric", timeZone: "UTC" });
  const known = new Map(groups.map((group) => [group.day, group]));
  const days: Day[] = [];
  for (let time = Date.parse(`${from}T00:00:00Z`); time <= Date.parse(`${last}T00:00:00Z`); time += DAY_MILLISECONDS) {
    const group = known.get(new Date(time).toISOString().slice(0, 10));
    const renders = Number(group?.render_cost_usd ?? 0);
    const values = {
      cost: [Math.max(0, Number(group?.cost_usd ?? 0) - renders), renders],
      calls: [group?.calls ?? 0],
      tokens: [group?.input_tokens ?? 0, group?.output_tokens ?? 0],
    }[measure];
    days.push({ label: name.format(time), values });
  }
  return days;
}

/** Return round values from zero to at least the largest one, at which lines are drawn. */
function chooseLines(largest: number): number[] {
  if (!(largest > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(largest));
  const step = [0.2, 0.25, 0.5, 1, 2, 2.5].map((factor) => factor * power).find((one) => largest / one <= MAX_LINES) ?? power * 5;
  return Array.from({ length: Math.ceil(largest / step) + 1 }, (_, index) => index * step);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** Place the values of a day above its bar, and not beyond the ends of the chart. */
function placeTip(index: number, count: number) {
  const percent = (100 * (index + 0.5)) / count;
  return { left: `${percent}%`, transform: `translateX(-${percent}%)` };
}
