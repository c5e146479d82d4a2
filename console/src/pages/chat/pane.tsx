import { CloseButton, Group, Select, Stack } from "@mantine/core";

import type { TextModel } from "#/api/text-models";
import { useStrings } from "#/language";

import { Answer } from "./answer";
import { Prompt, ToolResults } from "./prompt";
import { strings } from "./strings";
import type { Pane } from "./types";
import type { Chat } from "./use-chat";

interface Props {
  pane: Pane;
  label: string;
  models: readonly TextModel[];
  chat: Chat;
  isRemovable: boolean;
}

/** Shows the conversation with one model. */
export function PaneView({ pane, label, models, chat, isRemovable }: Props) {
  const t = useStrings(strings);
  const options = models.map(({ id, status }) => ({
    value: id,
    label: status === "up" ? id : `${id} (${t.notUp[status]})`,
    disabled: status === "not_configured",
  }));
  return (
    <Stack component="section" aria-label={t.conversation(pane.model)} gap="md" miw={0}>
      <Group gap="xs" wrap="nowrap" align="flex-end">
        <Select
          label={label} data={options} value={pane.model} allowDeselect={false} searchable flex={1} maw={420}
          onChange={(model) => model !== null && chat.setModel(pane.id, model)}
        />
        {isRemovable && <CloseButton size="lg" aria-label={t.removeModel} onClick={() => chat.removePane(pane.id)} />}
      </Group>
      <Stack role="log" aria-live="off" gap="md">
        {pane.turns.map((turn, place) => {
          const isLast = place === pane.turns.length - 1;
          switch (turn.role) {
            case "user":
              return <Prompt key={turn.id} turn={turn} onResend={(text) => chat.resend(turn, text)} />;
            case "tool":
              return <ToolResults key={turn.id} turn={turn} />;
            case "assistant":
              return (
                <Answer
                  key={turn.id} answer={turn} onRetry={isLast ? () => chat.retry(pane) : undefined}
                  onResults={isLast ? (results) => chat.sendResults(pane, results) : undefined}
                />
              );
          }
        })}
      </Stack>
    </Stack>
  );
}
