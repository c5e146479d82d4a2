/** Signs in with an email and a password, through an OpenID provider, or with an API key. */

import { Button, Center, Group, Paper, PasswordInput, Stack, Tabs, TextInput, Title } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";

import { type SignIn as Form, signIn } from "#/api/session";
import { LanguageMenu } from "#/components/account-menu";
import { ErrorAlert } from "#/components/error-alert";
import { type Catalogue, useStrings } from "#/language";

const en = {
  title: "Sign in to Moyin",
  email: "Email",
  password: "Password",
  apiKey: "API key",
  byPassword: "Account",
  submit: "Sign in",
};
const strings: Catalogue<typeof en> = {
  en,
  ja: {
    title: "Moyin にサインイン",
    email: "メールアドレス",
    password: "パスワード",
    apiKey: "API キー",
    byPassword: "アカウント",
    submit: "サインイン",
  },
};

export function SignIn() {
  const t = useStrings(strings);
  return (
    <Center component="main" mih="100vh" p="md">
      <Paper withBorder p="xl" w={400} maw="100%">
        <Group justify="space-between" mb="md" wrap="nowrap">
          <Title order={1} size="h3">{t.title}</Title>
          <LanguageMenu />
        </Group>
        <Tabs defaultValue="account" keepMounted={false}>
          <Tabs.List mb="md">
            <Tabs.Tab value="account">{t.byPassword}</Tabs.Tab>
            <Tabs.Tab value="key">{t.apiKey}</Tabs.Tab>
          </Tabs.List>
          <Tabs.Panel value="account">
            <SignInForm read={(data) => ({ email: `${data.get("email")}`, password: `${data.get("password")}` })}>
              <TextInput name="email" type="email" label={t.email} required autoComplete="username" />
              <PasswordInput name="password" label={t.password} required autoComplete="current-password" />
            </SignInForm>
          </Tabs.Panel>
          <Tabs.Panel value="key">
            <SignInForm read={(data) => ({ api_key: `${data.get("key")}`.trim() })}>
              <PasswordInput name="key" label={t.apiKey} required autoComplete="off" placeholder="moyin_…" />
            </SignInForm>
          </Tabs.Panel>
        </Tabs>
      </Paper>
    </Center>
  );
}

function SignInForm({ read, children }: { read: (data: FormData) => Form; children: React.ReactNode }) {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await signIn(read(new FormData(event.currentTarget)));
      await queries.invalidateQueries({ queryKey: ["caller"] });
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
        <Button type="submit" loading={busy}>{t.submit}</Button>
      </Stack>
    </form>
  );
}
