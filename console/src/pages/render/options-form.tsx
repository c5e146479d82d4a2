/** Project, priority, deadline and pool of the job. */

import { Select, SimpleGrid, Stack, Switch, TextInput } from "@mantine/core";

import { useStrings } from "#/language";

import type { Options } from "./request";
import { strings } from "./strings";

const POOL = "^[a-z0-9][a-z0-9\\-]{0,62}$";

export function isPoolName(name: string): boolean {
  return name === "" || new RegExp(POOL).test(name);
}

export function isPast(deadline: string): boolean {
  return deadline !== "" && Date.parse(deadline) <= Date.now();
}

export function OptionsForm({ options, onChange }: { options: Options; onChange: (options: Options) => void }) {
  const t = useStrings(strings);
  const set = (change: Partial<Options>) => onChange({ ...options, ...change });
  return (
    <Stack gap="sm">
      <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm">
        <TextInput
          label={t.project} description={t.projectHint} maxLength={1024} value={options.project}
          onChange={(event) => set({ project: event.currentTarget.value })}
        />
        <TextInput
          label={t.pool} description={t.poolHint} maxLength={63} value={options.pool}
          error={isPoolName(options.pool) ? undefined : t.poolProblem}
          onChange={(event) => set({ pool: event.currentTarget.value.trim() })}
        />
        <Select
          label={t.priority} allowDeselect={false} value={String(options.priority)}
          data={t.priorities.map((label, index) => ({ value: String(index + 1), label }))}
          onChange={(value) => set({ priority: Number(value) })}
        />
        <TextInput
          label={t.deadline} type="datetime-local" value={options.deadline} title={t.deadlineHint}
          error={isPast(options.deadline) ? t.pastDeadline : undefined}
          onChange={(event) => set({ deadline: event.currentTarget.value })}
        />
      </SimpleGrid>
      <Switch label={t.cache} checked={options.cache} onChange={(event) => set({ cache: event.currentTarget.checked })} />
    </Stack>
  );
}
