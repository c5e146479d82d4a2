import { Code, Group, Loader, Text } from "@mantine/core";

import type { LiveState } from "#/api/live-source";
import { useStrings } from "#/language";
import { strings } from "#/strings";

/** Says that the events of a page were lost for the moment, or why the server refuses them. */
export function Reconnecting({ live: { isReconnecting, refusal } }: { live: LiveState }) {
  const t = useStrings(strings);
  if (!isReconnecting) return null;
  return (
    <Group gap={6} role="status">
      <Loader size={14} />
      <Text size="sm">{refusal === null ? t.reconnecting : t.refused(refusal.message)}</Text>
      {refusal !== null && <Text size="xs">{t.code}: <Code>{refusal.code}</Code></Text>}
      {refusal?.requestId && <Text size="xs">{t.requestId}: <Code>{refusal.requestId}</Code></Text>}
    </Group>
  );
}
