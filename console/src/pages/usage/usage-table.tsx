/** Shows the sums of one property as a table, and saves them. */

import { Button, Group, Stack, Table } from "@mantine/core";
import { IconDownload } from "@tabler/icons-react";
import { useMutation } from "@tanstack/react-query";

import type { components } from "#api/models";
import { type Caller, hasScope } from "#/api/session";
import { useKeyNames, useNames } from "#/components/access/names";
import { downloadCsv } from "#/components/download";
import { ErrorAlert } from "#/components/error-alert";
import { CELL, ROW } from "#/components/plain";
import { useFormat, useStrings } from "#/language";
import type { GroupBy } from "#/pages/usage";
import { strings } from "#/pages/usage/strings";

type Row = components["schemas"]["GroupBody"];
type Report = components["schemas"]["UsageReport"];
const NAME = { maxWidth: 280 };

interface Props {
  pages: readonly Report[];
  group: GroupBy;
  caller: Caller;
  owner: string;
  /** The name of the file. */
  name: string;
  /** Reads the groups of all pages at once, for the file. */
  readAll: () => Promise<Report>;
}

export function UsageTable({ pages, group, caller, owner, name, readAll }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const tenant = owner === "" ? caller.owner : owner === "*" ? null : owner;
  const users = useNames(group === "user" && hasScope(caller, "org:read") ? tenant : null);
  const keys = useKeyNames(group === "key" && hasScope(caller, "keys") ? tenant : null);
  const describe = (row: Row): string => {
    const value = row[group];
    if (group === "operation" && !value) return t.chats;
    if (!value) return { user: t.noUser, template: t.noTemplate }[group as string] ?? t.none;
    if (group === "user") return users.user(value) ?? value;
    return (group === "key" && keys.get(value)) || value;
  };
  const save = useMutation({
    mutationFn: async () => downloadCsv(`moyin-usage-${group}_${name}`, (await readAll()).groups.map((row) => ({
      [group]: row[group] ?? "",
      ...(group === "user" || group === "key" ? { name: describe(row) } : {}),
      calls: row.calls, incomplete_calls: row.incomplete_calls, input_tokens: row.input_tokens,
      cached_tokens: row.cached_tokens, output_tokens: row.output_tokens,
      gpu_milliseconds: row.units.gpu_milliseconds ?? 0, cost_usd: row.cost_usd, render_cost_usd: row.render_cost_usd,
    }))),
  });
  const cells = (row: Omit<Row, "day">) => [
    format.number(row.calls), format.number(row.input_tokens), format.number(row.output_tokens),
    row.units.gpu_milliseconds ? format.seconds(row.units.gpu_milliseconds / 1000) : "–",
    format.usd(Number(row.render_cost_usd)), format.usd(Number(row.cost_usd)),
  ];
  const total = pages.at(-1)?.total;
  const heads = [t.calls, t.inputTokens, t.outputTokens, t.gpuTime, t.renderCost, t.cost];
  return (
    <Stack gap="sm">
      <Table.ScrollContainer minWidth={720} type="native" tabIndex={0} mah={520}>
        <Table stickyHeader verticalSpacing={6} highlightOnHover>
          <Table.Thead>
            <Table.Tr>
              <Table.Th>{t.groups[group]}</Table.Th>
              {heads.map((head) => <Table.Th key={head} ta="right">{head}</Table.Th>)}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {pages.flatMap(({ groups }) => groups).map((row) => (
              <tr key={row[group] ?? ""} {...ROW} data-hover>
                <td className={CELL}><p className="text-sm truncate" style={NAME} title={row[group] ?? ""}>{describe(row)}</p></td>
                {cells(row).map((value, index) => <td key={heads[index]} className={`${CELL} end`}>{value}</td>)}
              </tr>
            ))}
          </Table.Tbody>
          <Table.Tfoot>
            <Table.Tr>
              <Table.Th>{t.total}</Table.Th>
              {total && cells(total).map((value, index) => <Table.Th key={heads[index]} ta="right">{value}</Table.Th>)}
            </Table.Tr>
          </Table.Tfoot>
        </Table>
      </Table.ScrollContainer>
      {save.error && <ErrorAlert error={save.error} />}
      <Group justify="end">
        <Button
          size="xs" variant="default" loading={save.isPending} leftSection={<IconDownload size={14} aria-hidden />}
          onClick={() => save.mutate()}
        >
          {t.csv}
        </Button>
      </Group>
    </Stack>
  );
}
