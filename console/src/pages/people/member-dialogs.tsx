/** Forms that invite a member, add a service account, and change a role. */

import { Radio, Stack, Text, TextInput } from "@mantine/core";

import type { components } from "#api/accounts";
import { accounts, body } from "#/api/client";
import { FormDialog } from "#/components/access/key-dialogs";
import { useStrings } from "#/language";
import type { Member } from "#/pages/people/members";
import { strings } from "#/pages/people/strings";

type Role = components["schemas"]["Role"];
const ROLES = ["member", "viewer", "admin"] as const satisfies readonly Role[];

interface Props {
  opened: boolean;
  onClose: () => void;
  organisation: string;
}

function RoleChoice({ value = "member" }: { value?: Role }) {
  const t = useStrings(strings);
  return (
    <Radio.Group name="role" label={t.role} defaultValue={value}>
      <Stack gap="xs" mt={4}>
        {ROLES.map((role) => <Radio key={role} value={role} label={t.roles[role]} description={t.roleHints[role]} />)}
      </Stack>
    </Radio.Group>
  );
}

const readRole = (form: FormData) => `${form.get("role")}` as Role;

interface InviteProps extends Props {
  /** The organisation has no member yet: somebody is to administer it. */
  isFirst: boolean;
  /** Gets the invitation's token, or `null` if it was mailed. */
  onInvited: (token: string | null) => void;
}

export function Invite({ opened, onClose, organisation, isFirst, onInvited }: InviteProps) {
  const t = useStrings(strings);
  const invite = async (form: FormData) => {
    const invited = await body(accounts.POST("/organisations/{organisation}/members", {
      params: { path: { organisation } },
      body: { email: `${form.get("email")}`, name: `${form.get("name")}`.trim(), role: readRole(form) },
    }));
    onInvited(invited.invitation);
  };
  return (
    <FormDialog opened={opened} onClose={onClose} title={t.inviteTitle} action={t.invite} onSubmit={invite}>
      <TextInput name="email" type="email" label={t.email} required maxLength={254} autoComplete="off" data-autofocus />
      <TextInput name="name" label={t.name} maxLength={128} autoComplete="off" />
      <RoleChoice value={isFirst ? "admin" : "member"} />
      {isFirst && <Text size="sm" c="dimmed">{t.firstMember}</Text>}
    </FormDialog>
  );
}

export function AddService({ opened, onClose, organisation, onAdded }: Props & { onAdded: () => Promise<unknown> }) {
  const t = useStrings(strings);
  const add = async (form: FormData) => {
    await accounts.POST("/organisations/{organisation}/service-accounts", {
      params: { path: { organisation } }, body: { name: `${form.get("name")}`, role: readRole(form) },
    });
    await onAdded();
  };
  return (
    <FormDialog opened={opened} onClose={onClose} title={t.newService} action={t.create} onSubmit={add}>
      <TextInput name="name" label={t.serviceName} description={t.serviceHint} required maxLength={128} data-autofocus />
      <RoleChoice />
    </FormDialog>
  );
}

interface ChangeProps {
  /** The member; `null`: the dialog is closed. */
  member: Member | null;
  onClose: () => void;
  organisation: string;
  onChanged: () => Promise<unknown>;
}

export function ChangeRole({ member, onClose, organisation, onChanged }: ChangeProps) {
  const t = useStrings(strings);
  const change = async (form: FormData) => {
    await accounts.PATCH("/organisations/{organisation}/members/{user}", {
      params: { path: { organisation, user: member?.id ?? "" } }, body: { role: readRole(form) },
    });
    await onChanged();
  };
  const name = member?.name || member?.email || "";
  return (
    <FormDialog
      opened={member !== null} onClose={onClose} title={t.changeRoleTitle(name)} action={t.change} onSubmit={change}
    >
      <RoleChoice key={member?.id} value={member?.role ?? "member"} />
      <Text size="sm" c="dimmed">{t.changeRoleHint}</Text>
    </FormDialog>
  );
}
