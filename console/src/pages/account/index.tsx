/** Shows who is signed in, with profile, password, sessions, keys, limits and appearance. */

import { Paper, Stack, Title } from "@mantine/core";
import type { ReactNode } from "react";

import { hasScope, useCaller } from "#/api/session";
import { Keys } from "#/components/access/keys";
import { PageHeader } from "#/components/page-header";
import { useStrings } from "#/language";
import { Appearance } from "#/pages/account/appearance";
import { CloseAccount } from "#/pages/account/close-account";
import { OwnLimits } from "#/pages/account/own-limits";
import { Password } from "#/pages/account/password";
import { Identity, Profile } from "#/pages/account/profile";
import { Sessions } from "#/pages/account/sessions";
import { strings } from "#/pages/account/strings";

export default function AccountPage() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  if (!caller) return null;
  // A key of a person is no session, although it has an account.
  const isSession = caller.keyId.startsWith("ses");
  return (
    <Stack maw={900}>
      <PageHeader title={t.title} />
      <Section title={t.profile}>
        <Identity caller={caller} />
        {caller.account && isSession && <Profile key={caller.account.id} account={caller.account} />}
      </Section>
      <Section title={t.appearance}><Appearance /></Section>
      {isSession && <Section title={t.password}><Password /></Section>}
      {isSession && <Section title={t.sessions}><Sessions /></Section>}
      {caller.account && hasScope(caller, "keys") && (
        <Section title={t.keys}><Keys caller={caller} owner={caller.owner} user={caller.account.id} /></Section>
      )}
      <Section title={t.limits}><OwnLimits caller={caller} /></Section>
      {caller.account?.kind === "player" && isSession && <CloseAccount />}
    </Stack>
  );
}

function Section({ title, children }: { title: string; children: ReactNode }) {
  return (
    <Paper withBorder p="md" component="section">
      <Title order={3} size="h5" mb="sm">{title}</Title>
      {children}
    </Paper>
  );
}
