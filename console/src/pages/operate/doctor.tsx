/** Shows what `moyin doctor` finds on the gateway's machine: what is wrong first, then the rest. */

import { Box, Button, Group, Skeleton, Stack, Text, ThemeIcon } from "@mantine/core";
import { IconAlertTriangle, IconCheck, IconX } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import type { components } from "#api/gateway";

import { body, gateway } from "#/api/client";
import { ErrorAlert } from "#/components/error-alert";
import { Panel } from "#/components/panel";
import { Words } from "#/components/words";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

type Check = components["schemas"]["CheckBody"];
type Verdict = Check["verdict"];

const LOOKS = {
  fail: { color: "red", icon: IconX },
  warn: { color: "orange", icon: IconAlertTriangle },
  ok: { color: "green", icon: IconCheck },
} as const;
const ORDER: readonly Verdict[] = ["fail", "warn", "ok"];

export function Doctor() {
  const t = useStrings(strings).doctor;
  const format = useFormat();
  const doctor = useQuery({ queryKey: ["doctor"], queryFn: () => body(gateway.GET("/cluster/doctor")) });
  return (
    <Panel
      title={t.title}
      aside={doctor.data && (
        <Group gap="xs">
          <Text size="xs" c="dimmed" title={format.time(doctor.data.checked_at)}>
            {t.checked(format.ago(doctor.data.checked_at))}
          </Text>
          <Button variant="default" size="compact-xs" loading={doctor.isFetching} onClick={() => void doctor.refetch()}>
            {t.again}
          </Button>
        </Group>
      )}
    >
      {doctor.isError && <ErrorAlert error={doctor.error} onRetry={() => void doctor.refetch()} />}
      {doctor.isPending && <Skeleton h={160} />}
      {doctor.data && (
        <Box
          component="ul" m={0} p={0}
          style={{ listStyle: "none", display: "grid", gap: 10, gridTemplateColumns: "repeat(auto-fill, minmax(min(300px, 100%), 1fr))" }}
        >
          {ORDER.flatMap((verdict) => doctor.data.checks.filter((check) => check.verdict === verdict)).map((check) => (
            <CheckRow key={check.name} check={check} />
          ))}
        </Box>
      )}
      <Text size="sm" c="dimmed" mt="md"><Words>{t.about}</Words></Text>
    </Panel>
  );
}

function CheckRow({ check: { name, verdict, found, advice, fix } }: { check: Check }) {
  const t = useStrings(strings).doctor;
  const { color, icon: Icon } = LOOKS[verdict];
  const known = t.names[name];
  return (
    <Box component="li" style={verdict === "ok" ? undefined : { gridColumn: "1 / -1" }}>
      <Group gap="xs" wrap="nowrap" align="flex-start">
        <ThemeIcon color={color} size={22} radius="xl" role="img" aria-label={t.verdict[verdict]}>
          <Icon size={14} aria-hidden />
        </ThemeIcon>
        <Stack gap={2} style={{ overflowWrap: "anywhere", minWidth: 0 }}>
          <Text size="sm" fw={verdict === "ok" ? 400 : 700} lang={known === undefined ? "en" : undefined}>{known ?? name}</Text>
          <Text size="xs" c="dimmed" lang="en"><Words>{found}</Words></Text>
          {advice && <Text size="sm" lang="en"><Words>{advice}</Words></Text>}
          {fix && <Text size="sm"><Words>{t.fix}</Words> <span lang="en">{fix}</span></Text>}
        </Stack>
      </Group>
    </Box>
  );
}
