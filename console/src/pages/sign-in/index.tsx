/** Signs in with an email and a password, through an OpenID provider, or with an API key. */

import { Alert, Anchor, Button, Divider, Group, PasswordInput, Stack, Tabs, Text, TextInput } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { accounts, body } from "#/api/client";
import { type SignIn as Credentials, signIn, useHasSessionEnded } from "#/api/session";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";
import { Form, Frame } from "#/pages/sign-in/frame";
import { beginOpenId, REDIRECT_URI } from "#/pages/sign-in/openid";
import { strings } from "#/pages/sign-in/strings";

type View = "sign-in" | "forgot" | "register";

export function SignIn() {
  const t = useStrings(strings);
  const [view, setView] = useState<View>("sign-in");
  const hasEnded = useHasSessionEnded();
  const title = { "sign-in": t.title, forgot: t.forgotTitle, register: t.registerTitle }[view];
  const back = <Anchor component="button" type="button" size="sm" onClick={() => setView("sign-in")}>{t.back}</Anchor>;
  return (
    <Frame key={view} title={title}>
      {hasEnded && <Alert color="yellow" role="status" mb="md" p="xs">{t.ended}</Alert>}
      {view === "sign-in" && <Ways onView={setView} />}
      {view === "forgot" && <Stack><Forgot />{back}</Stack>}
      {view === "register" && <Stack><Register />{back}</Stack>}
    </Frame>
  );
}

/** Return a function that begins a session in this browser and shows the console. */
function useSignIn() {
  const queries = useQueryClient();
  return async (credentials: Credentials) => {
    await signIn(credentials);
    await queries.invalidateQueries({ queryKey: ["caller"] });
  };
}

function Ways({ onView }: { onView: (view: View) => void }) {
  const t = useStrings(strings);
  const enter = useSignIn();
  const [error, setError] = useState<Error | null>(null);
  // The first field has the focus at once, but does not take it from the tabs.
  const [hasChosen, setHasChosen] = useState(false);
  const { data: ways } = useQuery({
    queryKey: ["sign-in"],
    staleTime: 60_000,
    queryFn: ({ signal }) => body(accounts.GET("/sign-in", { signal })),
  });
  // Others send people back to other pages, such as a game's.
  const providers = ways?.providers.filter((provider) => provider.redirect_uris.includes(REDIRECT_URI)) ?? [];
  const begin = (provider: string) => {
    setError(null);
    beginOpenId(provider).catch(setError);
  };
  return (
    <Tabs defaultValue="account" keepMounted={false} onChange={() => setHasChosen(true)}>
      <Tabs.List mb="md">
        <Tabs.Tab value="account">{t.byPassword}</Tabs.Tab>
        <Tabs.Tab value="key">{t.apiKey}</Tabs.Tab>
      </Tabs.List>
      <Tabs.Panel value="account">
        <Form
          action={t.submit}
          onSubmit={(form) => enter({ email: `${form.get("email")}`, password: `${form.get("password")}` })}
        >
          <TextInput name="email" type="email" label={t.email} required autoComplete="username" autoFocus={!hasChosen} />
          <PasswordInput name="password" label={t.password} required autoComplete="current-password" />
        </Form>
        {ways && (ways.password_reset || ways.registration) && (
          <Group justify="space-between" mt="sm">
            {ways.password_reset && (
              <Anchor component="button" type="button" size="sm" onClick={() => onView("forgot")}>{t.forgot}</Anchor>
            )}
            {ways.registration && (
              <Anchor component="button" type="button" size="sm" onClick={() => onView("register")}>{t.register}</Anchor>
            )}
          </Group>
        )}
        {providers.length > 0 && (
          <Stack mt="md" gap="xs">
            <Divider label={t.or} />
            {error && <ErrorAlert error={error} />}
            {providers.map(({ name }) => (
              <Button key={name} variant="default" onClick={() => begin(name)}>{t.with(name)}</Button>
            ))}
          </Stack>
        )}
      </Tabs.Panel>
      <Tabs.Panel value="key">
        <Form action={t.submit} onSubmit={(form) => enter({ api_key: `${form.get("key")}`.trim() })}>
          <PasswordInput
            name="key" label={t.apiKey} description={t.apiKeyHint} required autoComplete="off" placeholder="moyin_…"
          />
        </Form>
      </Tabs.Panel>
    </Tabs>
  );
}

function Forgot() {
  const t = useStrings(strings);
  const [sent, setSent] = useState(false);
  if (sent) return <Text size="sm" role="status">{t.sent}</Text>;
  const send = async (form: FormData) => {
    await accounts.POST("/password/forgot", { body: { email: `${form.get("email")}` } });
    setSent(true);
  };
  return (
    <Form action={t.send} onSubmit={send}>
      <Text size="sm">{t.forgotHint}</Text>
      <TextInput name="email" type="email" label={t.email} required autoComplete="username" />
    </Form>
  );
}

function Register() {
  const t = useStrings(strings);
  const enter = useSignIn();
  const register = async (form: FormData) => {
    const session = await body(accounts.POST("/register", {
      body: { email: `${form.get("email")}`, name: `${form.get("name")}`.trim(), password: `${form.get("password")}` },
    }));
    await enter({ refresh_token: session.refresh_token });
  };
  return (
    <Form action={t.register} onSubmit={register}>
      <Text size="sm">{t.registerHint}</Text>
      <TextInput name="name" label={t.name} maxLength={128} autoComplete="name" />
      <TextInput name="email" type="email" label={t.email} required maxLength={254} autoComplete="username" />
      <PasswordInput
        name="password" label={t.newPassword} description={t.passwordHint} required minLength={10} maxLength={256}
        autoComplete="new-password"
      />
    </Form>
  );
}
