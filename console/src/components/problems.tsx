/** Says what is wrong on the cluster now, since when, and what to do. */

import { Alert, Group, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconCircleCheck } from "@tabler/icons-react";

import type { Problem } from "#/api/cluster";
import { useFormat, useStrings } from "#/language";

import { strings } from "./problems-strings";
import { Words } from "./words";

export function Problems({ problems }: { problems: readonly Problem[] }) {
  const t = useStrings(strings);
  if (problems.length === 0) {
    return (
      <Alert color="green" icon={<IconCircleCheck aria-hidden />} title={t.allWell} role="status">
        {t.allWellMore}
      </Alert>
    );
  }
  return (
    <Stack gap="xs" role="status">
      {problems.map((problem) => <ProblemAlert key={`${problem.code} ${problem.subject}`} problem={problem} />)}
    </Stack>
  );
}

function ProblemAlert({ problem }: { problem: Problem }) {
  const t = useStrings(strings);
  return (
    <Alert
      color="red" icon={<IconAlertTriangle aria-hidden />} role="group"
      title={`${t.kinds[problem.code] ?? problem.code}: ${problem.subject}`}
    >
      <ProblemWords problem={problem} />
    </Alert>
  );
}

/** What is wrong and what to do: in the reader's language where that is known, else in the server's words. */
export function ProblemWords({ problem }: { problem: Problem }) {
  const t = useStrings(strings);
  const format = useFormat();
  const advice = t.advice[problem.code];
  const message = t.messages[problem.code]?.(problem, format);
  return (
    <Stack gap={4}>
      <Text size="sm" lang={message === undefined ? "en" : undefined}>{message ?? problem.message}</Text>
      <Text size="sm" fw={600} lang={advice === undefined ? "en" : undefined}>
        <Words>{advice ?? problem.advice}</Words>
      </Text>
      <Group gap="sm">
        <Text size="xs" title={format.time(problem.since)}>{t.since(format.ago(problem.since))}</Text>
        <Text size="xs" ff="monospace">{problem.code}</Text>
      </Group>
    </Stack>
  );
}
