import { DotBadge } from "#/components/plain";
import { useStrings } from "#/language";

import { strings } from "./strings";
import { type JobStatus, STATUS_COLOURS } from "./types";

export function StatusBadge({ status }: { status: JobStatus }) {
  const t = useStrings(strings);
  return <DotBadge color={STATUS_COLOURS[status]}>{t[status]}</DotBadge>;
}
