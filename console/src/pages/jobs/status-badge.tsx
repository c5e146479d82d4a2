import { Badge } from "@mantine/core";

import { useStrings } from "#/language";

import { strings } from "./strings";
import { type JobStatus, STATUS_COLOURS } from "./types";

export function StatusBadge({ status }: { status: JobStatus }) {
  const t = useStrings(strings);
  return <Badge color={STATUS_COLOURS[status]} variant="dot" tt="none" style={{ flexShrink: 0 }}>{t[status]}</Badge>;
}
