import { Alert, Button, Code, CopyButton, Group, Modal, Stack, Text } from "@mantine/core";
import { IconCheck, IconCopy } from "@tabler/icons-react";

import { useStrings } from "#/language";
import { strings } from "#/components/access/strings";

/** A secret that the server shows only once. */
export interface Secret {
  title: string;
  /** Says what it is for. */
  explanation: string;
  value: string;
}

/** Shows a secret once, to be copied. */
export function SecretDialog({ secret, onClose }: { secret: Secret | null; onClose: () => void }) {
  const t = useStrings(strings);
  return (
    <Modal
      opened={secret !== null} onClose={onClose} title={secret?.title} centered size="lg"
      closeOnClickOutside={false} closeButtonProps={{ "aria-label": t.close }}
    >
      {secret && (
        <Stack>
          <Text size="sm">{secret.explanation}</Text>
          <Code block style={{ wordBreak: "break-all", whiteSpace: "pre-wrap" }} data-testid="secret">{secret.value}</Code>
          <Alert color="yellow" p="xs"><Text size="sm" c="var(--mantine-color-text)">{t.shownOnce}</Text></Alert>
          <Group justify="flex-end">
            <CopyButton value={secret.value}>
              {({ copied, copy }) => (
                <Button
                  variant="default" onClick={copy}
                  leftSection={copied ? <IconCheck size={16} aria-hidden /> : <IconCopy size={16} aria-hidden />}
                >
                  {copied ? t.copied : t.copy}
                </Button>
              )}
            </CopyButton>
            <Button onClick={onClose}>{t.done}</Button>
          </Group>
        </Stack>
      )}
    </Modal>
  );
}
