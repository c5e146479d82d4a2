/** Shows who is signed in. */

import { Code, Stack, Text } from "@mantine/core";

import { useCaller } from "#/api/session";
import { PageHeader } from "#/components/page-header";
import { type Catalogue, useStrings } from "#/language";

const en = { title: "My account", scopes: "You may" };
const strings: Catalogue<typeof en> = { en, ja: { title: "アカウント", scopes: "権限" } };

export default function AccountPage() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  if (!caller) return null;
  return (
    <Stack>
      <PageHeader title={t.title} />
      <Text>{t.scopes}: {caller.scopes.map((scope) => <Code key={scope} mr={4}>{scope}</Code>)}</Text>
    </Stack>
  );
}
