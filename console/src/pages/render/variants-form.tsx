/** Chooses how the renders of a job differ: by seeds, or by every combination of some values. */

import { ActionIcon, Button, Group, NumberInput, Paper, SegmentedControl, Select, Stack, TagsInput, Text } from "@mantine/core";
import { IconPlus, IconTrash } from "@tabler/icons-react";

import { useFormat, useStrings } from "#/language";

import { showScalar } from "./exact-json";
import { describeProblem } from "./input-field";
import { MAX_CHILDREN, type Problems, type Variable, type Variants } from "./request";
import { strings } from "./strings";

interface Props {
  variants: Variants;
  variables: Variable[];
  /** Whether there is a seed to count up. */
  hasSeed: boolean;
  problems: Problems;
  onChange: (variants: Variants) => void;
}

export function VariantsForm({ variants, variables, hasSeed, problems, onChange }: Props) {
  const t = useStrings(strings);
  const modes = [
    { value: "one", label: t.one },
    ...(hasSeed ? [{ value: "seeds", label: t.seeds }] : []),
    ...(variables.length > 0 ? [{ value: "sweep", label: t.sweep }] : []),
  ];
  const { sweep } = variants;
  const free = variables.filter(({ key }) => !sweep.some((item) => item.key === key));
  const add = () => {
    if (free[0]) onChange({ ...variants, mode: "sweep", sweep: [...sweep, { key: free[0].key, values: [] }] });
  };
  return (
    <Stack gap="sm">
      <SegmentedControl
        data={modes} value={variants.mode} aria-label={t.variants} fullWidth
        onChange={(mode) => {
          if (mode === "sweep" && sweep.length === 0) add();
          else onChange({ ...variants, mode: mode as Variants["mode"] });
        }}
      />
      {variants.mode === "seeds" && (
        <NumberInput
          label={t.seedCount} description={t.seedHint} min={1} max={MAX_CHILDREN} allowDecimal={false}
          value={variants.seeds} onChange={(seeds) => onChange({ ...variants, seeds: Number(seeds) || 1 })}
        />
      )}
      {variants.mode === "sweep" && (
        <>
          <Text size="sm" c="dimmed">{t.sweepHint}</Text>
          {sweep.map((item, index) => (
            <SweepRow
              key={index} item={item} variables={variables.filter(({ key }) => key === item.key || free.some((other) => other.key === key))}
              problem={problems[item.key]}
              onChange={(changed) => onChange({ ...variants, sweep: sweep.map((old, place) => (place === index ? changed : old)) })}
              onRemove={sweep.length > 1 ? () => onChange({ ...variants, sweep: sweep.filter((_, place) => place !== index) }) : undefined}
            />
          ))}
          {free.length > 0 && (
            <Button variant="subtle" size="xs" leftSection={<IconPlus size={14} aria-hidden />} onClick={add} w="fit-content">
              {t.addInput}
            </Button>
          )}
        </>
      )}
    </Stack>
  );
}

interface RowProps {
  item: Variants["sweep"][number];
  variables: Variable[];
  problem: Problems[string] | undefined;
  onChange: (item: Variants["sweep"][number]) => void;
  onRemove: (() => void) | undefined;
}

function SweepRow({ item, variables, problem, onChange, onRemove }: RowProps) {
  const t = useStrings(strings);
  const format = useFormat();
  const variable = variables.find(({ key }) => key === item.key);
  const choices = variable?.schema.type === "boolean" ? ["true", "false"] : variable?.schema.enum?.map(showScalar);
  // Commas are part of prompts, but end a number.
  const splitChars = variable?.schema.type === "string" ? [] : [",", " "];
  return (
    <Paper withBorder p="sm">
      <Group align="flex-end" wrap="nowrap" mb="xs">
        <Select
          label={t.sweepInput} flex={1} searchable allowDeselect={false} value={item.key}
          data={variables.map(({ key, label }) => ({ value: key, label }))}
          onChange={(key) => key && onChange({ key, values: [] })}
        />
        {onRemove && (
          <ActionIcon variant="subtle" size="lg" aria-label={t.removeInput(variable?.label ?? item.key)} onClick={onRemove}>
            <IconTrash size={16} />
          </ActionIcon>
        )}
      </Group>
      <TagsInput
        label={t.sweepValues} description={t.sweepValuesHint} data={choices ?? []} splitChars={splitChars}
        value={item.values} maxTags={MAX_CHILDREN} onChange={(values) => onChange({ ...item, values })}
        error={problem && describeProblem(problem, t, format)}
      />
    </Paper>
  );
}
