/** Lists members and service accounts, with what an administrator may do to each. */

import { Badge, Button, Group, Menu, Skeleton, Stack, Table, TextInput, VisuallyHidden } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { notifications } from "@mantine/notifications";
import { IconRobot, IconSearch, IconUserPlus } from "@tabler/icons-react";
import { useInfiniteQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import type { components } from "#api/accounts";
import { accounts, body } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { CreateKey } from "#/components/access/key-dialogs";
import { LimitsDialog } from "#/components/access/limits";
import { Confirm } from "#/components/confirm";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { MoreButton } from "#/components/more-button";
import { CELL, DotBadge, ROW } from "#/components/plain";
import { RowMenu, RowMenuButton } from "#/components/row-menu";
import { type Secret, SecretDialog } from "#/components/secret-dialog";
import { useFormat, useStrings } from "#/language";
import { AddService, ChangeRole, Invite } from "#/pages/people/member-dialogs";
import type { Tenant } from "#/pages/people/organisation-choice";
import { strings } from "#/pages/people/strings";

export type Member = components["schemas"]["UserBody"];
const NAME = { maxWidth: 260, fontWeight: 500 };
const EMAIL = { maxWidth: 280 };
type Act = "role" | "limits" | "key" | "disable";

export function Members({ caller, tenant }: { caller: Caller; tenant: Tenant }) {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [search, setSearch] = useState("");
  const [text] = useDebouncedValue(search, 250);
  const [adding, setAdding] = useState<"member" | "service" | null>(null);
  const [menu, setMenu] = useState<{ member: Member; button: HTMLElement } | null>(null);
  const [act, setAct] = useState<{ act: Act; member: Member } | null>(null);
  const [secret, setSecret] = useState<Secret | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const isOrganisation = tenant.id.startsWith("org_");
  const list = useInfiniteQuery({
    queryKey: ["members", tenant.id, "list", text],
    enabled: isOrganisation,
    initialPageParam: undefined as string | undefined,
    queryFn: ({ pageParam, signal }) => body(accounts.GET("/organisations/{organisation}/members", {
      params: { path: { organisation: tenant.id }, query: { limit: 50, cursor: pageParam, search: text } }, signal,
    })),
    getNextPageParam: (page) => page.next_cursor ?? undefined,
  });
  if (!isOrganisation) return <EmptyState title={t.noOrganisation}>{t.noOrganisationHint}</EmptyState>;
  const refresh = () => queries.invalidateQueries({ queryKey: ["members", tenant.id] });
  const showInvitation = (token: string | null) => {
    void refresh();
    if (token === null) {
      notifications.show({ message: t.invited, color: "teal" });
      return;
    }
    const value = `${location.origin}/console/reset#token=${token}&invited=1`;
    setSecret({ title: t.invitationTitle, explanation: t.invitationExplanation, value });
  };
  const setDisabled = async (member: Member, disabled: boolean) => {
    await accounts.PATCH("/organisations/{organisation}/members/{user}", {
      params: { path: { organisation: tenant.id, user: member.id } }, body: { disabled },
    });
    await refresh();
  };
  const inviteAgain = async (member: Member) => {
    const invited = await body(accounts.POST("/organisations/{organisation}/members/{user}/invitation", {
      params: { path: { organisation: tenant.id, user: member.id } },
    }));
    showInvitation(invited.invitation);
  };
  const attempt = (done: Promise<unknown>) => {
    setError(null);
    done.catch(setError);
  };
  const members = list.data?.pages.flatMap((page) => page.members) ?? [];
  const administers = hasScope(caller, "org:admin") || hasScope(caller, "operator");
  const member = act?.member ?? null;
  const opened = (name: Act) => (act?.act === name ? act.member : null);
  const close = () => setAct(null);
  return (
    <Stack>
      <Group justify="space-between">
        <TextInput
          value={search} onChange={(event) => setSearch(event.currentTarget.value)} aria-label={t.search}
          placeholder={t.search} leftSection={<IconSearch size={16} aria-hidden />} w={300} maxLength={128}
        />
        {administers && (
          <Group gap="xs">
            <Button variant="default" leftSection={<IconRobot size={16} aria-hidden />} onClick={() => setAdding("service")}>
              {t.newService}
            </Button>
            <Button leftSection={<IconUserPlus size={16} aria-hidden />} onClick={() => setAdding("member")}>{t.invite}</Button>
          </Group>
        )}
      </Group>
      {error && <ErrorAlert error={error} />}
      {list.error && <ErrorAlert error={list.error} onRetry={() => void list.refetch()} />}
      {list.isPending && <Skeleton height={160} />}
      {list.isSuccess && members.length === 0 && (
        <EmptyState title={text ? t.noMatch : t.noMembers}>{text ? t.noMatchHint : t.noMembersHint}</EmptyState>
      )}
      {members.length > 0 && (
        <Table.ScrollContainer minWidth={680} type="native" tabIndex={0}>
          <Table verticalSpacing="xs" highlightOnHover>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t.name}</Table.Th><Table.Th>{t.role}</Table.Th><Table.Th>{t.state}</Table.Th>
                <Table.Th>{t.joined}</Table.Th>
                <Table.Th pos="relative"><VisuallyHidden>{t.actions}</VisuallyHidden></Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {members.map((one) => (
                <Row
                  key={one.id} member={one} isSelf={one.id === caller.account?.id} hasMenu={menu?.member.id === one.id}
                  onActs={administers ? (button) => setMenu(menu?.member.id === one.id ? null : { member: one, button }) : undefined}
                />
              ))}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
      {menu && (
        <RowMenu button={menu.button} onClose={() => setMenu(null)}>
          <Menu.Item onClick={() => setAct({ act: "role", member: menu.member })}>{t.changeRole}</Menu.Item>
          <Menu.Item onClick={() => setAct({ act: "limits", member: menu.member })}>{t.showLimits}</Menu.Item>
          {menu.member.kind === "service" && hasScope(caller, "keys") && (
            <Menu.Item onClick={() => setAct({ act: "key", member: menu.member })}>{t.newKey}</Menu.Item>
          )}
          {menu.member.kind === "member" && !menu.member.disabled && (
            <Menu.Item onClick={() => attempt(inviteAgain(menu.member))}>{t.inviteAgain}</Menu.Item>
          )}
          {menu.member.disabled
            ? <Menu.Item onClick={() => attempt(setDisabled(menu.member, false))}>{t.enable}</Menu.Item>
            : <Menu.Item onClick={() => setAct({ act: "disable", member: menu.member })}>{t.disable}</Menu.Item>}
        </RowMenu>
      )}
      <MoreButton list={list} />
      <Invite opened={adding === "member"} onClose={() => setAdding(null)} organisation={tenant.id} onInvited={showInvitation} isFirst={list.isSuccess && members.length === 0 && text === ""} />
      <AddService opened={adding === "service"} onClose={() => setAdding(null)} organisation={tenant.id} onAdded={refresh} />
      <ChangeRole member={opened("role")} onClose={close} organisation={tenant.id} onChanged={refresh} />
      <LimitsDialog
        subject={opened("limits") && { id: `user:${member?.id}`, name: member?.name || member?.email || "" }} onClose={close}
      />
      <CreateKey
        opened={opened("key") !== null} onClose={close} caller={caller} user={member?.id}
        onCreated={(value) => setSecret({ title: t.newKeyTitle, explanation: t.newKeyExplanation, value })}
      />
      <Confirm
        opened={opened("disable") !== null} onClose={close} title={t.disableTitle} action={t.disable}
        onConfirm={() => member === null ? Promise.resolve() : setDisabled(member, true)}
      >
        {t.disableHint(member?.name || member?.email || "")}
      </Confirm>
      <SecretDialog secret={secret} onClose={() => setSecret(null)} />
    </Stack>
  );
}

interface RowProps {
  member: Member;
  isSelf: boolean;
  hasMenu: boolean;
  /** Opens or closes the menu of the row beside its button; undefined where the caller may do nothing. */
  onActs: ((button: HTMLElement) => void) | undefined;
}

function Row({ member, isSelf, hasMenu, onActs }: RowProps) {
  const t = useStrings(strings);
  const format = useFormat();
  const name = member.name || member.email || member.id;
  return (
    <tr {...ROW} data-hover>
      <td className={CELL}>
        <div className="line" style={{ flexWrap: "nowrap" }}>
          <p className="text-sm truncate" style={NAME} title={name}>{name}</p>
          {isSelf && <Badge size="xs" variant="outline">{t.you}</Badge>}
        </div>
        <p className="text-xs dimmed truncate" style={EMAIL}>{member.kind === "service" ? t.service : member.email}</p>
      </td>
      <td className={CELL}>{member.role && t.roles[member.role]}</td>
      <td className={CELL}>
        <DotBadge color={member.disabled ? "gray" : "teal"}>{member.disabled ? t.disabled : t.active}</DotBadge>
      </td>
      <td className={CELL}>{format.ago(member.created_at)}</td>
      <td className={`${CELL} end`}>
        {onActs && <RowMenuButton label={t.actionsOf(name)} isOpen={hasMenu} onClick={onActs} />}
      </td>
    </tr>
  );
}
