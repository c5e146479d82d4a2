/** Shows what a job was submitted with, step by step. */

import { Anchor, Divider, Paper, Stack, Text, Title } from "@mantine/core";

import { useStrings } from "#/language";

import { strings } from "../strings";
import type { JobDetail, Kind, SubmittedStep } from "../types";
import { JsonBlock } from "./json-block";
import { type Fact, Facts, Panel } from "#/components/panel";

// An input of a template has the id alone.
const ARTIFACT = /^(?:artifact:)?(art_[0-9a-f]{32})$/;

export function RequestPanel({ job }: { job: JobDetail }) {
  const t = useStrings(strings);
  const { submitted } = job;
  return (
    <Panel title={t.request}>
      {submitted === null && <Text size="sm" c="dimmed">{t.requestGone}</Text>}
      <Stack gap="md">
        {submitted?.steps.map((step, index) => (
          <div key={index}>
            {index > 0 && <Divider mb="md" />}
            {submitted.steps.length > 1 && (
              <Title order={4} size="h6" mb="xs">{t.step(index + 1)} · {t[step.kind as Kind]}</Title>
            )}
            <StepView step={step} />
          </div>
        ))}
      </Stack>
    </Panel>
  );
}

function StepView({ step }: { step: SubmittedStep }) {
  const t = useStrings(strings);
  const inputs: Fact[] = Object.entries(step.inputs ?? {}).map(([name, value]) => [name, <Value value={value} />]);
  const { messages, ...rest } = step.request ?? {};
  return (
    <Stack gap="sm">
      <Facts
        facts={[
          [t.template, step.template],
          [t.pool, step.pool],
          [t.cache, step.cache === null || step.cache === undefined ? null : step.cache ? t.yes : t.no],
          [t.protocol, step.protocol],
        ]}
      />
      {inputs.length > 0 && (
        <div>
          <Title order={4} size="h6" mb={4}>{t.inputs}</Title>
          <Facts facts={inputs} />
        </div>
      )}
      {Array.isArray(messages) && <Messages messages={messages} />}
      {step.request && Object.keys(rest).length > 0 && (
        <JsonBlock value={Array.isArray(messages) ? rest : step.request} label={t.rest} />
      )}
    </Stack>
  );
}

function Value({ value }: { value: unknown }) {
  const file = typeof value === "string" ? ARTIFACT.exec(value) : null;
  if (file) return <Anchor size="sm" href={`/artifacts/${file[1]}`} target="_blank">{file[0]}</Anchor>;
  return typeof value === "string" ? value : JSON.stringify(value);
}

function Messages({ messages }: { messages: readonly unknown[] }) {
  const t = useStrings(strings);
  return (
    <Stack gap="xs" role="list" aria-label={t.messages}>
      {messages.map((message, index) => {
        const { role, content, ...rest } = (typeof message === "object" && message !== null ? message : {}) as Record<string, unknown>;
        return (
          <Paper key={index} withBorder p="xs" role="listitem">
            <Text size="xs" c="dimmed">{String(role ?? "")}</Text>
            {typeof content === "string"
              ? <Text size="sm" style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere" }}>{content}</Text>
              : <JsonBlock value={{ content, ...rest }} label={`${t.messages} ${index + 1}`} />}
          </Paper>
        );
      })}
    </Stack>
  );
}
