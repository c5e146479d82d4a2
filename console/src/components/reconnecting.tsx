import { Group, Loader, Text } from "@mantine/core";

import { useStrings } from "#/language";
import { strings } from "#/strings";

/** Says that the events of a page were lost for the moment. */
export function Reconnecting() {
  const t = useStrings(strings);
  return <Group gap={6} role="status"><Loader size={14} /><Text size="sm">{t.reconnecting}</Text></Group>;
}
