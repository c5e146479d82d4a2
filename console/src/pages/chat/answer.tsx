import { ActionIcon, Alert, Box, Button, Code, CopyButton, Group, Loader, Stack, Text, Textarea, Tooltip } from "@mantine/core";
import { IconCheck, IconCopy, IconRefresh } from "@tabler/icons-react";
import { useState } from "react";

import { ErrorAlert } from "#/components/error-alert";
import { useExactUsd } from "#/components/small-numbers";
import { useFormat, useStrings } from "#/language";

import { Rating } from "./rating";
import { measureSpeed } from "./stream";
import { strings } from "./strings";
import { CodeBlock, MessageText } from "./text";
import type { AnswerTurn, ToolCall } from "./types";

interface Props {
  answer: AnswerTurn;
  /** Asks again; only the last answer has it. */
  onRetry?: () => void;
  /** Takes the results of the answer's calls; only the last answer has it. */
  onResults?: (results: { id: string; content: string }[]) => void;
}

/** Shows an answer while it is written, who gave it and why, and what it cost. */
export function Answer({ answer, onRetry, onResults }: Props) {
  const t = useStrings(strings);
  const { state, text, thoughts, calls, facts, error } = answer;
  const isEmpty = text === "" && thoughts === "" && calls.length === 0;
  return (
    <Box component="article" aria-busy={state === "streaming"} aria-label={facts.model}>
      {facts.backend !== undefined && (
        <Text size="xs" fw={600} c="dimmed">{t.via(facts.model ?? "", facts.backend)}</Text>
      )}
      {thoughts !== "" && (
        <Box component="details" open={text === "" && state === "streaming"} my={4}>
          <Text component="summary" size="xs" c="dimmed">{t.thoughts}</Text>
          <Text size="xs" c="dimmed" style={{ whiteSpace: "pre-wrap" }}>{thoughts}</Text>
        </Box>
      )}
      {state === "streaming" && isEmpty && (
        <Group gap="xs" my={4}><Loader size="xs" type="dots" /><Text size="sm" c="dimmed">{t.waiting}</Text></Group>
      )}
      <MessageText text={text} />
      {calls.length > 0 && <Calls calls={calls} onResults={state === "streaming" ? undefined : onResults} />}
      {error !== undefined && <ErrorAlert error={error} onRetry={onRetry} />}
      {state === "stopped" && <Text size="xs" c="dimmed" fs="italic">{t.stopped}</Text>}
      {facts.finish === "length" && (
        <Alert color="yellow" variant="light" p="xs" my={4}><Text size="xs">{t.cut}</Text></Alert>
      )}
      {state !== "streaming" && facts.backend !== undefined && <FactLines answer={answer} />}
      {state !== "streaming" && (
        <Group gap={2} mt={2}>
          {text !== "" && <CopyIcon text={text} label={t.copy} />}
          {onRetry !== undefined && (
            <Tooltip label={t.retry}>
              <ActionIcon variant="subtle" color="gray" aria-label={t.retry} onClick={onRetry}><IconRefresh size={16} /></ActionIcon>
            </Tooltip>
          )}
          {state === "done" && facts.requestId !== undefined && <Rating requestId={facts.requestId} />}
        </Group>
      )}
    </Box>
  );
}

function FactLines({ answer: { facts } }: { answer: AnswerTurn }) {
  const t = useStrings(strings);
  const { number, seconds } = useFormat();
  const exact = useExactUsd();
  const speed = measureSpeed(facts);
  const parts = [
    facts.costUsd !== undefined && exact(facts.costUsd),
    facts.outputTokens !== undefined && t.tokens(number(facts.promptTokens ?? 0), number(facts.outputTokens)),
    facts.isEstimated && t.estimated,
    speed !== undefined && t.speed(number(speed)),
    facts.firstTokenSeconds !== undefined && t.firstToken(seconds(facts.firstTokenSeconds)),
    facts.seconds !== undefined && t.total(seconds(facts.seconds)),
    facts.cache === "hit" && t.cached,
  ].filter((part) => typeof part === "string");
  return (
    <Box mt={4} fz="xs" c="dimmed">
      <div>{parts.join(" · ")}</div>
      {facts.route !== undefined && <div>{t.why}: {facts.route}</div>}
      {facts.requestId !== undefined && (
        <div>{t.requestId}: <Code fz="xs" style={{ overflowWrap: "anywhere" }}>{facts.requestId}</Code></div>
      )}
    </Box>
  );
}

function Calls({ calls, onResults }: { calls: readonly ToolCall[]; onResults?: Props["onResults"] }) {
  const t = useStrings(strings);
  const [results, setResults] = useState<Record<string, string>>({});
  const read = (call: ToolCall) => results[call.id] ?? "";
  return (
    <Stack gap="xs" my="xs">
      <Text size="xs" fw={600}>{t.calls}</Text>
      {calls.map((call) => (
        <Box key={call.id}>
          <CodeBlock language={call.name} text={indent(call.arguments)} />
          {onResults !== undefined && (
            <Textarea
              size="xs" label={t.resultOf(call.name)} autosize minRows={1} maxRows={6} value={read(call)}
              onChange={(event) => setResults({ ...results, [call.id]: event.currentTarget.value })}
            />
          )}
        </Box>
      ))}
      {onResults !== undefined && (
        <Group>
          <Button
            size="xs" disabled={calls.some((call) => read(call) === "")}
            onClick={() => onResults(calls.map((call) => ({ id: call.id, content: read(call) })))}
          >
            {t.sendResults}
          </Button>
        </Group>
      )}
    </Stack>
  );
}

export function CopyIcon({ text, label }: { text: string; label: string }) {
  const t = useStrings(strings);
  return (
    <CopyButton value={text}>
      {({ copied, copy }) => (
        <Tooltip label={copied ? t.copied : label}>
          <ActionIcon variant="subtle" color="gray" aria-label={copied ? t.copied : label} onClick={copy}>
            {copied ? <IconCheck size={16} /> : <IconCopy size={16} />}
          </ActionIcon>
        </Tooltip>
      )}
    </CopyButton>
  );
}

/** Return JSON with line breaks; arguments that a model got wrong are shown as they are. */
function indent(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
