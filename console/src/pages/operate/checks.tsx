/** Lists what the gateway checks all the time, with what is wrong and what to do. */

import { Box, Group, Stack, Text, ThemeIcon } from "@mantine/core";
import { IconCheck, IconX } from "@tabler/icons-react";

import type { Problem } from "#/api/cluster";
import { Panel } from "#/components/panel";
import { ProblemWords } from "#/components/problems";
import { useStrings } from "#/language";

import { strings, type Strings } from "./strings";

type Check = keyof Strings["checks"]["names"];

/** The checks in their order, each with the codes of its problems. */
const CHECKS: Record<Check, readonly string[]> = {
  database: ["service_down"],
  temporal: ["service_down"],
  valkey: ["service_down"],
  artifacts: ["service_down"],
  ray: ["ray_not_responding"],
  apps: ["app_unhealthy"],
  config: ["config_rejected"],
  disk: ["disk_nearly_full"],
  memory: ["memory_kill"],
  pools: ["pool_not_responding", "pool_without_renderer", "renderer_failed", "renderer_restarts"],
  waits: ["long_wait"],
  backends: ["backend_down", "backend_breaker_open"],
  routes: ["route_without_upstream"],
  templates: ["template_invalid"],
};

export function Checks({ problems }: { problems: readonly Problem[] }) {
  const t = useStrings(strings).checks;
  const checks = Object.keys(CHECKS) as Check[];
  // What is wrong comes first; the order of the others does not change.
  const isBad = (check: Check) => problems.some((problem) => belongs(problem, check));
  const sorted = [...checks.filter(isBad), ...checks.filter((check) => !isBad(check))];
  // A problem that this console does not know yet is shown nevertheless.
  const others = problems.filter((problem) => !checks.some((check) => belongs(problem, check)));
  return (
    <Panel title={t.title}>
      <Box
        component="ul" m={0} p={0}
        style={{ listStyle: "none", display: "grid", gap: 10, gridTemplateColumns: "repeat(auto-fill, minmax(min(300px, 100%), 1fr))" }}
      >
        {others.map((problem) => <CheckRow key={problem.code} name={problem.code} problems={[problem]} />)}
        {sorted.map((check) => (
          <CheckRow
            key={check} name={t.names[check]} problems={problems.filter((problem) => belongs(problem, check))}
          />
        ))}
      </Box>
    </Panel>
  );
}

function CheckRow({ name, problems }: { name: string; problems: readonly Problem[] }) {
  const t = useStrings(strings).checks;
  const isGood = problems.length === 0;
  return (
    <Box component="li" style={isGood ? undefined : { gridColumn: "1 / -1" }}>
      <Group gap="xs" wrap="nowrap" align="flex-start">
        <ThemeIcon color={isGood ? "green" : "red"} size={22} radius="xl" role="img" aria-label={isGood ? t.good : t.bad}>
          {isGood ? <IconCheck size={14} aria-hidden /> : <IconX size={14} aria-hidden />}
        </ThemeIcon>
        <Stack gap="xs">
          <Text size="sm" fw={isGood ? 400 : 700}>{name}</Text>
          {problems.map((problem) => (
            <ProblemWords key={`${problem.code} ${problem.subject}`} problem={problem} />
          ))}
        </Stack>
      </Group>
    </Box>
  );
}

function belongs(problem: Problem, check: Check): boolean {
  if (problem.code === "service_down") return problem.subject === check;
  return CHECKS[check].includes(problem.code);
}
