import { Button, Group, PasswordInput, Stack } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";

import { accounts } from "#/api/client";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";
import { strings } from "#/pages/account/strings";

/** Changes the password, which ends the other sessions. */
export function Password() {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const change = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = event.currentTarget;
    const data = new FormData(form);
    setError(null);
    setBusy(true);
    try {
      await accounts.POST("/password", {
        body: { current_password: `${data.get("current")}`, new_password: `${data.get("next")}` },
      });
      form.reset();
      notifications.show({ message: t.passwordChanged, color: "teal" });
      await queries.invalidateQueries({ queryKey: ["sessions"] });
    } catch (failure) {
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <form onSubmit={(event) => void change(event)}>
      <Stack maw={420}>
        {error && <ErrorAlert error={error} />}
        <PasswordInput name="current" label={t.current} description={t.currentHint} autoComplete="current-password" />
        <PasswordInput
          name="next" label={t.next} description={t.nextHint} required minLength={10} maxLength={256} autoComplete="new-password"
        />
        <Group><Button type="submit" variant="default" loading={busy}>{t.change}</Button></Group>
      </Stack>
    </form>
  );
}
