/** Shows the apps of Ray Serve, and the versions of what runs. */

import { Badge, Group, Stack, Text } from "@mantine/core";

import type { Pool } from "#/api/cluster";
import { type Fact, Facts, Panel } from "#/components/panel";
import { useStrings } from "#/language";

import { strings } from "./strings";

const RENDER = "render-";
const STATUS_COLOURS: Record<string, string> = {
  RUNNING: "green", DEPLOYING: "yellow", NOT_STARTED: "yellow", DELETING: "gray",
};

export function Apps({ applications }: { applications: Readonly<Record<string, string>> }) {
  const t = useStrings(strings).apps;
  const names = Object.keys(applications).sort();
  return (
    <Panel title={t.title}>
      <Stack component="ul" gap="xs" m={0} p={0} style={{ listStyle: "none" }}>
        {names.map((name) => (
          <Group component="li" key={name} justify="space-between" gap="xs" wrap="nowrap">
            <div>
              <Text size="sm" fw={600}>{name}</Text>
              <Text size="xs" c="dimmed">
                {name.startsWith(RENDER) ? t.render(name.slice(RENDER.length)) : t.about[name]}
              </Text>
            </div>
            <Badge variant="light" tt="none" color={STATUS_COLOURS[applications[name]!] ?? "red"} size="sm" style={{ flexShrink: 0 }}>
              {applications[name]}
            </Badge>
          </Group>
        ))}
      </Stack>
    </Panel>
  );
}

const PACKAGES: Record<string, string> = { moyin: "Moyin", ray: "Ray", temporalio: "Temporal SDK" };

export function Versions({ versions, pools }: { versions: Readonly<Record<string, string>>; pools: readonly Pool[] }) {
  const t = useStrings(strings).versions;
  const facts: Fact[] = [
    ...Object.entries(versions).map(([name, version]): Fact => [PACKAGES[name] ?? name, version]),
    ...pools.map((pool): Fact => [t.comfyui(pool.name), pool.comfyui_version ?? t.unknown]),
  ];
  return <Panel title={t.title}><Facts facts={facts} /></Panel>;
}
