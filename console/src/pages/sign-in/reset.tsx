/** Sets a password with the token of a mailed link or of an invitation, which greets a new member. */

import { Anchor, PasswordInput, Stack, Text } from "@mantine/core";
import { useEffect, useState } from "react";
import { Link } from "wouter";

import { accounts } from "#/api/client";
import { EmptyState } from "#/components/empty-state";
import { useStrings } from "#/language";
import { Form, Frame } from "#/pages/sign-in/frame";
import { strings } from "#/pages/sign-in/strings";

function readLink() {
  // After `#` it is sent to no server; links of earlier settings have it after `?`.
  const link = new URLSearchParams(location.hash.slice(1));
  const token = link.get("token") ?? new URLSearchParams(location.search).get("token") ?? "";
  return { token, isInvitation: link.has("invited") };
}

export function ResetPassword() {
  const t = useStrings(strings);
  const [{ token, isInvitation }] = useState(readLink);
  const [done, setDone] = useState(false);
  useEffect(() => {
    // The token is not to stay in the browser's history.
    history.replaceState(null, "", location.pathname);
  }, []);
  const set = async (form: FormData) => {
    await accounts.POST("/password/reset", { body: { token, password: `${form.get("password")}` } });
    setDone(true);
  };
  return (
    <Frame title={isInvitation ? t.invitedTitle : t.resetTitle}>
      <Stack>
        {done && <Text size="sm" role="status">{isInvitation ? t.invitedDone : t.done}</Text>}
        {!done && token === "" && <EmptyState title={t.noToken}>{t.noTokenHint}</EmptyState>}
        {!done && token !== "" && (
          <Form action={t.set} onSubmit={set}>
            <Text size="sm">{isInvitation ? t.invitedHint : t.resetHint}</Text>
            <PasswordInput
              name="password" label={t.newPassword} description={t.passwordHint} required minLength={10} maxLength={256}
              autoComplete="new-password"
            />
          </Form>
        )}
        <Anchor component={Link} href="/" size="sm">{done ? t.onward : t.back}</Anchor>
      </Stack>
    </Frame>
  );
}
