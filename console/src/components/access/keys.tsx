/** Lists API keys; creates, rotates and revokes them. */

import { ActionIcon, Badge, Button, Code, Group, Menu, Skeleton, Stack, Switch, Table, Text, TextInput, VisuallyHidden } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconDots, IconKey, IconSearch } from "@tabler/icons-react";
import { useInfiniteQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import type { components } from "#api/accounts";
import { accounts, body } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { LimitsDialog, type Subject } from "#/components/access/limits";
import { CreateKey, RotateKey } from "#/components/access/key-dialogs";
import { strings } from "#/components/access/strings";
import { useNames } from "#/components/access/names";
import { Confirm } from "#/components/confirm";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { MoreButton } from "#/components/more-button";
import { type Secret, SecretDialog } from "#/components/secret-dialog";
import { useFormat, useStrings } from "#/language";

type Key = components["schemas"]["KeyBody"];

interface Props {
  caller: Caller;
  owner: string;
  /** Shows only the keys of this user. */
  user?: string;
}

export function Keys({ caller, owner, user }: Props) {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [search, setSearch] = useState("");
  const [text] = useDebouncedValue(search, 250);
  const [valid, setValid] = useState(true);
  const [creating, setCreating] = useState(false);
  const [rotating, setRotating] = useState<Key | null>(null);
  const [revoking, setRevoking] = useState<Key | null>(null);
  const [limited, setLimited] = useState<Subject | null>(null);
  const [secret, setSecret] = useState<Secret | null>(null);
  const names = useNames(user === undefined && hasScope(caller, "org:read") ? owner : null);
  const list = useInfiniteQuery({
    queryKey: ["keys", owner, user, valid, text],
    initialPageParam: undefined as string | undefined,
    queryFn: ({ pageParam, signal }) => body(accounts.GET("/keys", {
      params: { query: { limit: 50, cursor: pageParam, owner, user, valid, search: text } }, signal,
    })),
    getNextPageParam: (page) => page.next_cursor ?? undefined,
  });
  const refresh = () => queries.invalidateQueries({ queryKey: ["keys"] });
  const show = (value: string) => {
    setSecret({ title: t.newKeyTitle, explanation: t.newKeyExplanation, value });
    void refresh();
  };
  const revoke = async () => {
    await accounts.DELETE("/keys/{key}", { params: { path: { key: revoking?.id ?? "" } } });
    await refresh();
  };
  const keys = list.data?.pages.flatMap((page) => page.keys) ?? [];
  const administers = hasScope(caller, "org:admin") || hasScope(caller, "operator");
  return (
    <Stack>
      <Group justify="space-between">
        <Group>
          <TextInput
            value={search} onChange={(event) => setSearch(event.currentTarget.value)} aria-label={t.searchKeys}
            placeholder={t.searchKeys} leftSection={<IconSearch size={16} aria-hidden />} maxLength={128}
          />
          <Switch label={t.validOnly} checked={valid} onChange={(event) => setValid(event.currentTarget.checked)} />
        </Group>
        {owner === caller.owner && (
          <Button leftSection={<IconKey size={16} aria-hidden />} onClick={() => setCreating(true)}>{t.newKey}</Button>
        )}
      </Group>
      {list.error && <ErrorAlert error={list.error} onRetry={() => void list.refetch()} />}
      {list.isPending && <Skeleton height={160} />}
      {list.isSuccess && keys.length === 0 && (
        <EmptyState title={t.noKeys}>{owner === caller.owner ? t.noKeysHint : t.noKeysHintOthers}</EmptyState>
      )}
      {keys.length > 0 && (
        <Table.ScrollContainer minWidth={820} type="native" tabIndex={0}>
          <Table verticalSpacing="xs" highlightOnHover>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t.name}</Table.Th>
                {user === undefined && <Table.Th>{t.owner}</Table.Th>}
                <Table.Th>{t.scopes}</Table.Th>
                <Table.Th>{t.state}</Table.Th>
                <Table.Th>{t.expires}</Table.Th>
                <Table.Th>{t.lastUsed}</Table.Th>
                <Table.Th pos="relative"><VisuallyHidden>{t.actions}</VisuallyHidden></Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {keys.map((key) => (
                <KeyRow
                  key={key.id} value={key} holder={user === undefined ? names.user(key.user) ?? t.tenantKey : null}
                  onRotate={() => setRotating(key)} onRevoke={() => setRevoking(key)}
                  onLimits={administers ? () => setLimited({ id: `key:${key.id}`, name: key.name || key.id }) : undefined}
                />
              ))}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
      <MoreButton list={list} />
      <CreateKey opened={creating} onClose={() => setCreating(false)} caller={caller} onCreated={show} />
      <RotateKey id={rotating?.id ?? null} onClose={() => setRotating(null)} onRotated={show} />
      <Confirm
        opened={revoking !== null} onClose={() => setRevoking(null)} title={t.revokeTitle} action={t.revoke} onConfirm={revoke}
      >
        {t.revokeExplanation(revoking?.name || revoking?.id || "")}
      </Confirm>
      <LimitsDialog subject={limited} onClose={() => setLimited(null)} />
      <SecretDialog secret={secret} onClose={() => setSecret(null)} />
    </Stack>
  );
}

interface RowProps {
  value: Key;
  holder: string | null;
  onRotate: () => void;
  onRevoke: () => void;
  onLimits?: (() => void) | undefined;
}

function KeyRow({ value, holder, onRotate, onRevoke, onLimits }: RowProps) {
  const t = useStrings(strings);
  const format = useFormat();
  const isExpired = value.expires_at !== null && Date.parse(value.expires_at) <= Date.now();
  const state = value.revoked_at !== null ? "revoked" : isExpired ? "expired" : "valid";
  const name = value.name || t.unnamed;
  return (
    <Table.Tr>
      <Table.Td>
        <Text size="sm" fw={500} truncate maw={220} title={name}>{name}</Text>
        <Text size="xs" c="dimmed">{value.id}</Text>
      </Table.Td>
      {holder !== null && <Table.Td><Text size="sm" truncate maw={180} title={holder}>{holder}</Text></Table.Td>}
      <Table.Td><Group gap={4} maw={280}>{value.scopes.map((scope) => <Code key={scope}>{scope}</Code>)}</Group></Table.Td>
      <Table.Td><Badge variant="dot" tt="none" color={state === "valid" ? "teal" : "gray"}>{t[state]}</Badge></Table.Td>
      <Table.Td><Text size="sm">{value.expires_at === null ? t.never : format.ago(value.expires_at)}</Text></Table.Td>
      <Table.Td><Text size="sm">{value.last_used_at === null ? t.unused : format.ago(value.last_used_at)}</Text></Table.Td>
      <Table.Td ta="right">
        {state === "valid" && (
          <Menu position="bottom-end">
            <Menu.Target>
              <ActionIcon variant="subtle" color="gray" aria-label={t.actionsOf(name)}><IconDots size={16} /></ActionIcon>
            </Menu.Target>
            <Menu.Dropdown>
              {onLimits && <Menu.Item onClick={onLimits}>{t.limits}</Menu.Item>}
              <Menu.Item onClick={onRotate}>{t.rotate}</Menu.Item>
              <Menu.Item onClick={onRevoke}>{t.revoke}</Menu.Item>
            </Menu.Dropdown>
          </Menu>
        )}
      </Table.Td>
    </Table.Tr>
  );
}
