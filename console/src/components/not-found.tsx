import { Anchor } from "@mantine/core";
import { Link } from "wouter";

import { EmptyState } from "#/components/empty-state";
import { useStrings } from "#/language";
import { strings } from "#/strings";

/** Says that an address leads nowhere. What other tenants have looks the same as what does not exist. */
export function NotFound({ title, children }: { title?: string; children?: string }) {
  const t = useStrings(strings);
  return (
    <EmptyState title={title ?? t.notFoundTitle}>
      <p>{children ?? t.notFound}</p>
      <Anchor component={Link} href="~/console/" size="sm">{t.toStart}</Anchor>
    </EmptyState>
  );
}
