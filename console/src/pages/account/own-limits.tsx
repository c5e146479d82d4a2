import { Skeleton, Stack, Text, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";

import { accounts, body, models } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { Budgets } from "#/components/access/budgets";
import { LimitList } from "#/components/access/limit-list";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";
import { strings } from "#/pages/account/strings";

/** Shows the limits that apply to the caller, and what is left of its budgets. */
export function OwnLimits({ caller }: { caller: Caller }) {
  const t = useStrings(strings);
  const limits = useQuery({
    queryKey: ["limits", "own"],
    queryFn: ({ signal }) => body(accounts.GET("/limits", { signal })),
  });
  const hasBudget = limits.data?.limits.some((limit) => limit.usd_per_day ?? limit.usd_per_month) ?? false;
  const usage = useQuery({
    queryKey: ["usage", "budgets"],
    enabled: hasBudget && hasScope(caller, "text"),
    queryFn: ({ signal }) => body(models.GET("/usage", { params: { query: { group_by: ["day"] } }, signal })),
  });
  if (limits.isPending) return <Skeleton height={40} />;
  if (limits.isError) return <ErrorAlert error={limits.error} onRetry={() => void limits.refetch()} />;
  if (limits.data.limits.length === 0) return <Text size="sm" c="dimmed">{t.noLimits}</Text>;
  return (
    <Stack>
      {usage.data?.budgets && <Budgets budgets={usage.data.budgets} />}
      {limits.data.limits.map((limit) => (
        <div key={limit.subject}>
          <Title order={4} size="h6" mb={4}>{t.subjects[limit.subject.split(":")[0] ?? ""]}</Title>
          <LimitList limits={limit} empty={t.noLimits} />
        </div>
      ))}
    </Stack>
  );
}
