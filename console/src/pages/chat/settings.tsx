import { Anchor, Group, JsonInput, NumberInput, Paper, SimpleGrid, Textarea } from "@mantine/core";
import type { ReactNode } from "react";

import { useStrings } from "#/language";

import { isObject, isToolList, parseJson } from "./request";
import { strings } from "./strings";
import type { Settings } from "./types";

const TOOLS = [{
  name: "get_weather",
  description: "Return the weather of a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
}];
const SCHEMA = {
  type: "object",
  properties: { title: { type: "string" }, tags: { type: "array", items: { type: "string" }, maxItems: 5 } },
  required: ["title", "tags"],
};

/** Return which of the typed JSON texts cannot be sent. */
export function findMistakes(settings: Settings): { tools: boolean; schema: boolean } {
  return { tools: !isJson(settings.tools, isToolList), schema: !isJson(settings.schema, isObject) };
}

function isJson(text: string, isValid: (value: unknown) => boolean): boolean {
  try {
    const value = parseJson(text);
    return value === undefined || isValid(value);
  } catch {
    return false;
  }
}

/** Asks for what is sent with each prompt. */
export function SettingsPanel({ value, onChange }: { value: Settings; onChange: (value: Settings) => void }) {
  const t = useStrings(strings);
  const mistakes = findMistakes(value);
  const set = (change: Partial<Settings>) => onChange({ ...value, ...change });
  const toNumber = (typed: number | string) => (typed === "" ? null : Number(typed));
  return (
    <Paper withBorder p="md" mb="md">
      <SimpleGrid cols={{ base: 1, md: 2 }}>
        <Textarea
          label={t.system} description={t.systemHint} autosize minRows={3} maxRows={10}
          value={value.system} onChange={(event) => set({ system: event.currentTarget.value })}
        />
        <Group grow align="flex-start">
          <NumberInput
            label={t.temperature} description={t.temperatureHint} min={0} max={2} step={0.1} decimalScale={2}
            value={value.temperature ?? ""} onChange={(typed) => set({ temperature: toNumber(typed) })}
          />
          <NumberInput
            label={t.maxTokens} description={t.temperatureHint} min={1} max={1_000_000} step={64}
            allowDecimal={false} value={value.maxTokens ?? ""}
            onChange={(typed) => set({ maxTokens: toNumber(typed) })}
          />
        </Group>
        <JsonField
          label={t.tools} hint={t.toolsHint} error={mistakes.tools && t.toolsInvalid} example={TOOLS}
          value={value.tools} onChange={(tools) => set({ tools })}
        />
        <JsonField
          label={t.schema} hint={t.schemaHint} error={mistakes.schema && t.schemaInvalid} example={SCHEMA}
          value={value.schema} onChange={(schema) => set({ schema })}
        />
      </SimpleGrid>
    </Paper>
  );
}

interface JsonFieldProps {
  label: string;
  hint: string;
  error: ReactNode;
  example: unknown;
  value: string;
  onChange: (text: string) => void;
}

function JsonField({ label, hint, error, example, value, onChange }: JsonFieldProps) {
  const t = useStrings(strings);
  return (
    <div>
      <JsonInput
        label={label} description={hint} error={error} formatOnBlur autosize minRows={3} maxRows={14}
        spellCheck={false} value={value} onChange={onChange}
      />
      {value === "" && (
        <Anchor
          component="button" type="button" size="xs" aria-label={`${t.example}: ${label}`}
          onClick={() => onChange(JSON.stringify(example, null, 2))}
        >
          {t.example}
        </Anchor>
      )}
    </div>
  );
}
