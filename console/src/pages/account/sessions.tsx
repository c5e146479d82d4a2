import { Badge, Button, Group, Skeleton, Stack, Text } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import type { components } from "#api/accounts";
import { accounts, body } from "#/api/client";
import { forgetCaller } from "#/api/session";
import { Confirm } from "#/components/confirm";
import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";
import { strings } from "#/pages/account/strings";

type Session = components["schemas"]["OpenSession"];

/** Lists where the person is signed in, and ends sessions. */
export function Sessions() {
  const t = useStrings(strings);
  const format = useFormat();
  const queries = useQueryClient();
  const [ending, setEnding] = useState<Session | null>(null);
  const [everywhere, setEverywhere] = useState(false);
  const list = useQuery({
    queryKey: ["sessions"],
    queryFn: ({ signal }) => body(accounts.GET("/sessions", { signal })),
  });
  const end = async () => {
    await accounts.DELETE("/sessions/{session}", { params: { path: { session: ending?.id ?? "" } } });
    await queries.invalidateQueries({ queryKey: ["sessions"] });
  };
  const endAll = async () => {
    await accounts.POST("/logout", { body: { everywhere: true } });
    forgetCaller(queries);
  };
  const name = (session: Session) => describeAgent(session.user_agent) || t.unknownAgent;
  return (
    <Stack gap="sm">
      {list.error && <ErrorAlert error={list.error} onRetry={() => void list.refetch()} />}
      {list.isPending && <Skeleton height={60} />}
      {list.data?.sessions.map((session) => (
        <Group key={session.id} justify="space-between" wrap="nowrap">
          <div>
            <Group gap="xs">
              <Text size="sm" fw={500} title={session.user_agent}>{name(session)}</Text>
              {session.current && <Badge size="sm" variant="outline">{t.thisSession}</Badge>}
            </Group>
            <Text size="xs" c="dimmed">
              {[session.address, t.lastUsed(format.ago(session.last_used_at))].filter(Boolean).join(" · ")}
            </Text>
          </div>
          {!session.current && (
            <Button size="xs" variant="default" aria-label={t.endOf(name(session))} onClick={() => setEnding(session)}>{t.end}</Button>
          )}
        </Group>
      ))}
      <Group><Button variant="subtle" color="red" size="xs" onClick={() => setEverywhere(true)}>{t.endOthers}</Button></Group>
      <Confirm opened={ending !== null} onClose={() => setEnding(null)} title={t.endTitle} action={t.end} onConfirm={end}>
        {ending && t.endHint(name(ending))}
      </Confirm>
      <Confirm
        opened={everywhere} onClose={() => setEverywhere(false)} title={t.endOthersTitle} action={t.endOthers} onConfirm={endAll}
      >
        {t.endOthersHint}
      </Confirm>
    </Stack>
  );
}

const BROWSERS = [["Edg/", "Edge"], ["OPR/", "Opera"], ["Firefox/", "Firefox"], ["Chrome/", "Chrome"], ["Safari/", "Safari"]];
const SYSTEMS = [
  ["Android", "Android"], ["iPhone", "iPhone"], ["iPad", "iPad"], ["Windows", "Windows"], ["Mac OS", "macOS"], ["Linux", "Linux"],
];

/** Return the name of a browser and its system, or else how the program calls itself. */
function describeAgent(agent: string): string {
  const find = (names: string[][]) => names.find(([mark]) => agent.includes(mark ?? ""))?.[1];
  const browser = find(BROWSERS);
  return browser === undefined ? agent.slice(0, 60) : [browser, find(SYSTEMS)].filter(Boolean).join(" · ");
}
