/** The limits and budgets of a whole tenant, which operators change and admins see. */

import { Paper, Skeleton, Stack, Text, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";

import { accounts, body } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { Budgets } from "#/components/access/budgets";
import { LimitList } from "#/components/access/limit-list";
import { LimitsPanel } from "#/components/access/limits";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";
import type { Tenant } from "#/pages/people/organisation-choice";
import { strings } from "#/pages/people/strings";

export function TenantLimits({ caller, tenant }: { caller: Caller; tenant: Tenant }) {
  const t = useStrings(strings);
  const isOperator = hasScope(caller, "operator");
  const subject = { id: `owner:${tenant.id}`, name: tenant.name };
  return (
    <Stack maw={860}>
      <Text size="sm" c="dimmed">{t.tenantLimits} {!isOperator && t.onlyOperators} {t.perMember}</Text>
      <Paper withBorder p="md">
        <Title order={3} size="h5" mb="md">{t.tenantLimitsOf(tenant.name)}</Title>
        {isOperator ? <LimitsPanel subject={subject} /> : <ReadOnly subject={subject.id} />}
      </Paper>
    </Stack>
  );
}

function ReadOnly({ subject }: { subject: string }) {
  const t = useStrings(strings);
  const path = { subject };
  const limits = useQuery({
    queryKey: ["limits", subject],
    queryFn: ({ signal }) => body(accounts.GET("/limits/{subject}", { params: { path }, signal })),
  });
  const budgets = useQuery({
    queryKey: ["limits", subject, "budgets"],
    queryFn: ({ signal }) => body(accounts.GET("/limits/{subject}/budgets", { params: { path }, signal })),
  });
  const error = limits.error ?? budgets.error;
  return (
    <Stack>
      {error && <ErrorAlert error={error} />}
      {limits.isPending && <Skeleton height={80} />}
      {budgets.data && budgets.data.budgets.length > 0 && <Budgets budgets={budgets.data.budgets} />}
      {limits.data && <LimitList limits={limits.data} empty={t.noLimits} />}
    </Stack>
  );
}
