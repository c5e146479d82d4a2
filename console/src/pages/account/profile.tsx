import { Button, Code, Group, Stack, Text, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";

import { accounts, body } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";
import { strings } from "#/pages/account/strings";

/** Says who the caller is, and what it may do. */
export function Identity({ caller }: { caller: Caller }) {
  const t = useStrings(strings);
  const { account } = caller;
  const organisation = account?.organisation ?? null;
  const { data: found } = useQuery({
    queryKey: ["organisation", organisation],
    enabled: organisation !== null && hasScope(caller, "org:read"),
    staleTime: 60_000,
    queryFn: ({ signal }) => body(accounts.GET("/organisations/{organisation}", {
      params: { path: { organisation: organisation ?? "" } }, signal,
    })),
  });
  const facts: [string, string | null | undefined][] = [
    [t.email, account?.email],
    [t.role, account && t.roles[account.role ?? account.kind]],
    [organisation ? t.organisation : t.tenant, found?.name ?? caller.owner],
    [t.key, account === null ? caller.keyId : null],
  ];
  return (
    <Stack gap={6} mb={account ? "md" : 0}>
      {facts.map(([label, value]) => value && (
        <Group key={label} gap="xs"><Text size="sm" c="dimmed" w={150}>{label}</Text><Text size="sm">{value}</Text></Group>
      ))}
      <Group gap="xs" align="start">
        <Text size="sm" c="dimmed" w={150}>{t.scopes}</Text>
        <Group gap={4}>{caller.scopes.map((scope) => <Code key={scope}>{scope}</Code>)}</Group>
      </Group>
    </Stack>
  );
}

/** Changes the name. */
export function Profile({ account }: { account: NonNullable<Caller["account"]> }) {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [error, setError] = useState<Error | null>(null);
  const save = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    setError(null);
    try {
      await accounts.PATCH("/me", { body: { name: `${new FormData(event.currentTarget).get("name")}`.trim() } });
      await queries.invalidateQueries({ queryKey: ["caller"] });
      notifications.show({ message: t.saved, color: "teal" });
    } catch (failure) {
      setError(failure as Error);
    }
  };
  return (
    <form onSubmit={(event) => void save(event)}>
      {error && <ErrorAlert error={error} />}
      <Group align="end">
        <TextInput name="name" label={t.name} defaultValue={account.name} maxLength={128} autoComplete="name" w={280} maw="100%" />
        <Button type="submit" variant="default">{t.save}</Button>
      </Group>
    </form>
  );
}
