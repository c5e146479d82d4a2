import { Button, Center, Group, Paper, Stack, Title } from "@mantine/core";
import { type FormEvent, type ReactNode, useState } from "react";

import { LanguageMenu } from "#/components/account-menu";
import { ErrorAlert } from "#/components/error-alert";

/** The box of all pages that people see before they are signed in. */
export function Frame({ title, children }: { title: string; children: ReactNode }) {
  return (
    <Center component="main" mih="100vh" p="md">
      <Paper withBorder p="xl" w={400} maw="100%">
        <Group justify="space-between" mb="md" wrap="nowrap">
          <Title order={1} size="h3">{title}</Title>
          <LanguageMenu />
        </Group>
        {children}
      </Paper>
    </Center>
  );
}

interface Props {
  action: string;
  onSubmit: (form: FormData) => Promise<unknown>;
  children: ReactNode;
}

/** A form that shows the server's error and keeps what was typed. */
export function Form({ action, onSubmit, children }: Props) {
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await onSubmit(new FormData(event.currentTarget));
    } catch (failure) {
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <form onSubmit={(event) => void submit(event)}>
      <Stack>
        {error && <ErrorAlert error={error} />}
        {children}
        <Button type="submit" loading={busy}>{action}</Button>
      </Stack>
    </form>
  );
}
