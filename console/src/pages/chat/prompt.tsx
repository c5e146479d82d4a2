import { ActionIcon, Button, Group, Image, Paper, Text, Textarea, Tooltip } from "@mantine/core";
import { IconPencil } from "@tabler/icons-react";
import { useState } from "react";

import { useStrings } from "#/language";

import { CopyIcon } from "./answer";
import { strings } from "./strings";
import { MessageText } from "./text";
import type { ToolTurn, UserTurn } from "./types";

/** Shows what the person asked; it can be edited and sent again. */
export function Prompt({ turn, onResend }: { turn: UserTurn; onResend: (text: string) => void }) {
  const t = useStrings(strings);
  const [edited, setEdited] = useState<string | null>(null);
  const resend = () => {
    setEdited(null);
    onResend((edited ?? "").trim());
  };
  return (
    <Paper bg="var(--mantine-color-default-hover)" p="sm" component="article" aria-label={t.you}>
      <Group justify="space-between" wrap="nowrap" gap="xs">
        <Text size="xs" fw={600} c="dimmed">{t.you}</Text>
        <Group gap={2} wrap="nowrap">
          <CopyIcon text={turn.text} label={t.copyPrompt} />
          <Tooltip label={t.edit}>
            <ActionIcon variant="subtle" color="gray" aria-label={t.edit} onClick={() => setEdited(turn.text)}>
              <IconPencil size={16} />
            </ActionIcon>
          </Tooltip>
        </Group>
      </Group>
      {turn.pictures.length > 0 && (
        <Group gap="xs" my={4}>
          {turn.pictures.map((url) => <Image key={url} src={url} alt={t.picture} w={120} mah={120} fit="contain" radius="sm" />)}
        </Group>
      )}
      {edited === null ? <MessageText text={turn.text} /> : (
        <>
          <Textarea
            aria-label={t.prompt} autosize minRows={2} maxRows={12} value={edited} data-autofocus
            onChange={(event) => setEdited(event.currentTarget.value)}
          />
          <Group gap="xs" mt="xs">
            <Button size="xs" disabled={edited.trim() === ""} onClick={resend}>{t.save}</Button>
            <Button size="xs" variant="default" onClick={() => setEdited(null)}>{t.cancel}</Button>
          </Group>
        </>
      )}
    </Paper>
  );
}

export function ToolResults({ turn }: { turn: ToolTurn }) {
  const t = useStrings(strings);
  return (
    <Paper bg="var(--mantine-color-default-hover)" p="sm" component="article" aria-label={t.results}>
      <Text size="xs" fw={600} c="dimmed">{t.results}</Text>
      {turn.results.map((result) => <MessageText key={result.id} text={result.content} />)}
    </Paper>
  );
}
