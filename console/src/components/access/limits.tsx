/** Shows and changes the limits and budgets of a key, a user or a tenant. */

import {
  Button, Divider, Group, Modal, NumberInput, Select, SimpleGrid, Skeleton, Stack, TagsInput,
} from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";

import type { components } from "#api/accounts";
import { accounts, body } from "#/api/client";
import { Budgets } from "#/components/access/budgets";
import { strings } from "#/components/access/strings";
import { Confirm } from "#/components/confirm";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";

type Limits = components["schemas"]["SubjectLimit"];

/** Whose limits: `id` is `key:…`, `user:…` or `owner:…`. */
export interface Subject {
  id: string;
  name: string;
}

export function LimitsDialog({ subject, onClose }: { subject: Subject | null; onClose: () => void }) {
  const t = useStrings(strings);
  return (
    <Modal
      opened={subject !== null} onClose={onClose} size="lg" centered title={subject && t.limitsOf(subject.name)}
      closeButtonProps={{ "aria-label": t.close }}
    >
      {subject && <LimitsPanel subject={subject} onSaved={onClose} />}
    </Modal>
  );
}

export function LimitsPanel({ subject, onSaved }: { subject: Subject; onSaved?: () => void }) {
  const path = { subject: subject.id };
  const limits = useQuery({
    queryKey: ["limits", subject.id],
    // Read again only after a change, so that nothing that was typed is lost.
    staleTime: Infinity,
    // Each opening reads them anew, since saving replaces all of them.
    gcTime: 0,
    queryFn: ({ signal }) => body(accounts.GET("/limits/{subject}", { params: { path }, signal })),
  });
  const hasBudget = Boolean(limits.data && (limits.data.usd_per_day ?? limits.data.usd_per_month));
  const budgets = useQuery({
    queryKey: ["limits", subject.id, "budgets"],
    enabled: hasBudget,
    queryFn: ({ signal }) => body(accounts.GET("/limits/{subject}/budgets", { params: { path }, signal })),
  });
  if (limits.isPending) return <Skeleton height={240} />;
  if (limits.isError) return <ErrorAlert error={limits.error} onRetry={() => void limits.refetch()} />;
  return (
    <Stack>
      {budgets.error && <ErrorAlert error={budgets.error} />}
      {hasBudget && budgets.isPending && <Skeleton height={64} />}
      {hasBudget && budgets.data && <><Budgets budgets={budgets.data.budgets} /><Divider /></>}
      <LimitsForm key={limits.dataUpdatedAt} limits={limits.data} {...(onSaved && { onSaved })} />
    </Stack>
  );
}

const COUNTS = [
  ["requests_per_minute", "requestsPerMinute"], ["tokens_per_minute", "tokensPerMinute"],
  ["concurrent_requests", "concurrentRequests"], ["open_jobs", "openJobs"],
  ["graph_nodes", "graphNodes"], ["graph_links", "graphLinks"], ["graph_bytes", "graphBytes"],
] as const;
const MONEY = [["usd_per_day", "usdPerDay"], ["usd_per_month", "usdPerMonth"]] as const;
const LISTS = [
  ["pools", "pools", "poolsHint"], ["allowed_nodes", "allowedNodes", "patternsHint"],
  ["denied_nodes", "deniedNodes", "patternsHint"],
] as const;

function LimitsForm({ limits, onSaved }: { limits: Limits; onSaved?: () => void }) {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [lists, setLists] = useState<Record<string, string[]>>({});
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const [removing, setRemoving] = useState(false);
  const path = { subject: limits.subject };
  const hasLimits = Object.entries(limits).some(([name, value]) => name !== "subject" && value !== null);
  const finish = async () => {
    notifications.show({ message: t.saved, color: "teal" });
    onSaved?.();
    await queries.invalidateQueries({ queryKey: ["limits"] });
  };
  const save = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const text = (name: string) => `${form.get(name) ?? ""}`.trim();
    const changed: Record<string, number | string | string[]> = {};
    for (const [name] of COUNTS) if (text(name)) changed[name] = Number(text(name));
    for (const [name] of MONEY) if (text(name)) changed[name] = text(name);
    if (text("best_priority")) changed.best_priority = Number(text("best_priority"));
    for (const [name] of LISTS) {
      const names = lists[name] ?? limits[name] ?? [];
      if (names.length > 0) changed[name] = names;
    }
    setBusy(true);
    setError(null);
    try {
      await accounts.PUT("/limits/{subject}", { params: { path }, body: changed });
      await finish();
    } catch (failure) {
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  const remove = async () => {
    await accounts.DELETE("/limits/{subject}", { params: { path } });
    await finish();
  };
  return (
    <form onSubmit={(event) => void save(event)}>
      <Stack>
        {error && <ErrorAlert error={error} />}
        <SimpleGrid cols={{ base: 1, xs: 2 }} verticalSpacing="sm">
          {MONEY.map(([name, label]) => (
            <NumberInput
              key={name} name={name} label={t[label]} placeholder={t.empty} min={0} decimalScale={9}
              defaultValue={limits[name] ?? ""} hideControls
            />
          ))}
          {COUNTS.map(([name, label]) => (
            <NumberInput
              key={name} name={name} label={t[label]} placeholder={t.empty} min={0} allowDecimal={false}
              defaultValue={limits[name] ?? ""} hideControls
            />
          ))}
          <Select
            name="best_priority" label={t.bestPriority} description={t.bestPriorityHint} placeholder={t.empty} clearable
            data={["1", "2", "3", "4", "5"]} defaultValue={limits.best_priority ? `${limits.best_priority}` : null}
          />
          {LISTS.map(([name, label, hint]) => (
            <TagsInput
              key={name} label={t[label]} description={t[hint]} defaultValue={limits[name] ?? []} maxTags={256}
              onChange={(names) => setLists((before) => ({ ...before, [name]: names }))}
            />
          ))}
        </SimpleGrid>
        <Group justify="space-between">
          {hasLimits ? <Button variant="subtle" color="red" onClick={() => setRemoving(true)}>{t.removeLimits}</Button> : <span />}
          <Button type="submit" loading={busy}>{t.save}</Button>
        </Group>
      </Stack>
      <Confirm
        opened={removing} onClose={() => setRemoving(false)} title={t.removeTitle} action={t.removeLimits} onConfirm={remove}
      >
        {t.removeExplanation}
      </Confirm>
    </form>
  );
}
