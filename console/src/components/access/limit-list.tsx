import { Table, Text } from "@mantine/core";

import type { components } from "#api/accounts";
import { strings } from "#/components/access/strings";
import { useFormat, useStrings } from "#/language";

const ROWS = [
  ["usd_per_day", "usdPerDay"], ["usd_per_month", "usdPerMonth"], ["requests_per_minute", "requestsPerMinute"],
  ["tokens_per_minute", "tokensPerMinute"], ["concurrent_requests", "concurrentRequests"], ["open_jobs", "openJobs"],
  ["best_priority", "bestPriority"], ["graph_nodes", "graphNodes"], ["graph_links", "graphLinks"], ["graph_bytes", "graphBytes"],
  ["pools", "pools"], ["allowed_nodes", "allowedNodes"], ["denied_nodes", "deniedNodes"],
] as const;

interface Props {
  limits: components["schemas"]["SubjectLimit"];
  empty: string;
}

/** Shows those limits of a subject that are set. */
export function LimitList({ limits, empty }: Props) {
  const t = useStrings(strings);
  const format = useFormat();
  const rows = ROWS.flatMap(([name, label]) => {
    const value = limits[name];
    if (value === null || value === undefined) return [];
    const shown = Array.isArray(value)
      ? value.join(", ")
      : typeof value === "string" ? format.usd(Number(value)) : format.number(value);
    return [[t[label], shown] as const];
  });
  if (rows.length === 0) return <Text size="sm" c="dimmed">{empty}</Text>;
  return (
    <Table variant="vertical" withTableBorder>
      <Table.Tbody>
        {rows.map(([label, value]) => (
          <Table.Tr key={label}><Table.Th w="50%">{label}</Table.Th><Table.Td>{value}</Table.Td></Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  );
}
