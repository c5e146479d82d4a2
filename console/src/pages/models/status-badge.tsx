import { Badge } from "@mantine/core";

import type { ModelStatus } from "#/api/text-models";
import { useStrings } from "#/language";

import { strings } from "./strings";

const COLORS = { up: "teal", down: "red", not_configured: "gray" } as const;

export function StatusBadge({ status }: { status: ModelStatus }) {
  const t = useStrings(strings);
  return <Badge variant="light" color={COLORS[status]} tt="none" miw="max-content">{t.status[status]}</Badge>;
}
