/** Lets operators choose an organisation, or create one. */

import { Button, Select, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { IconPlus } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { accounts, body } from "#/api/client";
import type { Caller } from "#/api/session";
import { FormDialog } from "#/components/access/key-dialogs";
import { useStrings } from "#/language";
import { strings } from "#/pages/people/strings";

export interface Tenant {
  id: string;
  name: string;
}

interface Props {
  caller: Caller;
  tenant: Tenant;
  onChoose: (id: string) => void;
}

export function OrganisationChoice({ caller, tenant, onChoose }: Props) {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const own = { value: caller.owner, label: `${t.ownTenant} (${caller.owner})` };
  const [search, setSearch] = useState("");
  // The field holds the chosen one's label until somebody types, which searches for nothing.
  const chosen = tenant.id === own.value ? own.label : tenant.name;
  const [text] = useDebouncedValue(search === chosen ? "" : search, 250);
  const [creating, setCreating] = useState(false);
  const { data } = useQuery({
    queryKey: ["organisations", text],
    queryFn: ({ signal }) => body(accounts.GET("/organisations", {
      params: { query: { limit: 50, search: text } }, signal,
    })),
  });
  const found = data?.organisations.map(({ id, name }) => ({ value: id, label: name })) ?? [];
  // The chosen one stays among them, whatever is searched for.
  const options = [own, ...found.filter((option) => option.value !== own.value)];
  if (options.every((option) => option.value !== tenant.id)) options.push({ value: tenant.id, label: tenant.name });
  const create = async (form: FormData) => {
    const made = await body(accounts.POST("/organisations", { body: { name: `${form.get("name")}` } }));
    await queries.invalidateQueries({ queryKey: ["organisations"] });
    onChoose(made.id);
  };
  return (
    <>
      <Select
        aria-label={t.organisation} placeholder={t.moreOrganisations} data={options} value={tenant.id} searchable
        onSearchChange={setSearch} allowDeselect={false} w={260} maxDropdownHeight={320}
        // The server has searched.
        filter={({ options: all }) => all}
        onChange={(value) => value && onChoose(value)}
      />
      <Button variant="default" leftSection={<IconPlus size={16} aria-hidden />} onClick={() => setCreating(true)}>
        {t.newOrganisation}
      </Button>
      <FormDialog
        opened={creating} onClose={() => setCreating(false)} title={t.newOrganisation} action={t.create} onSubmit={create}
      >
        <TextInput name="name" label={t.organisationName} required maxLength={128} data-autofocus />
      </FormDialog>
    </>
  );
}
