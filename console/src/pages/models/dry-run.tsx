import { Button, Checkbox, Group, NumberInput, Select, SimpleGrid, Stack, Text, Textarea } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";

import { answersChats, explainRoute, useTextModels } from "#/api/text-models";
import { ErrorAlert } from "#/components/error-alert";
import { RouteExplanation } from "#/components/route-explanation";
import { useStrings } from "#/language";

import { strings } from "./strings";

const NEEDS = ["tools", "vision", "schema"] as const;
type Need = (typeof NEEDS)[number];

interface Form {
  model: string;
  prompt: string;
  maxTokens: number | string;
  needs: Need[];
  floor: number | string;
  badAnswer: number | string;
}

// What a request that uses it looks like; the router looks at the presence, not at the content.
const PICTURE =
  "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
const TOOL = { type: "function", function: { name: "example", parameters: { type: "object", properties: {} } } };
const SCHEMA = { name: "example", schema: { type: "object", properties: { text: { type: "string" } } } };

/** Asks the router who would answer a request, and shows its reasons. */
export function DryRun() {
  const t = useStrings(strings);
  const { data } = useTextModels();
  const [form, setForm] = useState<Form>({
    model: "auto", prompt: "", maxTokens: 300, needs: [], floor: "", badAnswer: "",
  });
  const set = (change: Partial<Form>) => setForm({ ...form, ...change });
  const explanation = useMutation({ mutationFn: () => explainRoute(buildBody(form), buildHeaders(form)) });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    explanation.mutate();
  };
  return (
    <Stack gap="xl">
      <form onSubmit={submit}>
        <Stack>
          <Text size="sm" c="dimmed">{t.routeText}</Text>
          <SimpleGrid cols={{ base: 1, sm: 2, lg: 4 }}>
            <Select
              label={t.model} searchable allowDeselect={false} value={form.model}
              data={(data ?? []).filter(answersChats).map(({ id }) => id)}
              onChange={(model) => model !== null && set({ model })}
            />
            <NumberInput
              label={t.maxTokens} min={1} allowDecimal={false} value={form.maxTokens}
              onChange={(maxTokens) => set({ maxTokens })}
            />
            <NumberInput
              label={t.floor} placeholder={t.optional} min={0} max={1} step={0.05} value={form.floor}
              onChange={(floor) => set({ floor })}
            />
            <NumberInput
              label={t.badAnswer} placeholder={t.optional} min={0} step={0.001} decimalScale={6} value={form.badAnswer}
              onChange={(badAnswer) => set({ badAnswer })}
            />
          </SimpleGrid>
          <Textarea
            label={t.prompt} required autosize minRows={3} maxRows={12} value={form.prompt}
            onChange={(event) => set({ prompt: event.currentTarget.value })}
          />
          <Checkbox.Group
            label={t.needs} value={form.needs} onChange={(needs) => set({ needs: needs as Need[] })}
          >
            <Group mt={4}>{NEEDS.map((need) => <Checkbox key={need} value={need} label={t.ability[need]} />)}</Group>
          </Checkbox.Group>
          <Group><Button type="submit" loading={explanation.isPending}>{t.explain}</Button></Group>
        </Stack>
      </form>
      <div aria-live="polite">
        {explanation.error && <ErrorAlert error={explanation.error} />}
        {explanation.data && !explanation.error && <RouteExplanation explanation={explanation.data} />}
      </div>
    </Stack>
  );
}

function buildBody({ model, prompt, maxTokens, needs }: Form): Record<string, unknown> {
  const content = needs.includes("vision")
    ? [{ type: "text", text: prompt }, { type: "image_url", image_url: { url: PICTURE } }]
    : prompt;
  return {
    model,
    messages: [{ role: "user", content }],
    ...(maxTokens === "" ? {} : { max_tokens: Number(maxTokens) }),
    ...(needs.includes("tools") ? { tools: [TOOL] } : {}),
    ...(needs.includes("schema") ? { response_format: { type: "json_schema", json_schema: SCHEMA } } : {}),
  };
}

function buildHeaders({ floor, badAnswer }: Form): Record<string, string> {
  return {
    ...(floor === "" ? {} : { "x-moyin-quality": String(floor) }),
    ...(badAnswer === "" ? {} : { "x-moyin-usd-per-bad-answer": String(badAnswer) }),
  };
}
