/** Lets operators choose an organisation, or create one. */

import { Button, TextInput } from "@mantine/core";
import { IconPlus } from "@tabler/icons-react";
import { useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { accounts, body } from "#/api/client";
import type { Caller } from "#/api/session";
import { FormDialog } from "#/components/access/key-dialogs";
import { OrganisationSelect } from "#/components/access/organisation-select";
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
  const [creating, setCreating] = useState(false);
  const create = async (form: FormData) => {
    const made = await body(accounts.POST("/organisations", { body: { name: `${form.get("name")}` } }));
    await queries.invalidateQueries({ queryKey: ["organisations"] });
    onChoose(made.id);
  };
  return (
    <>
      <OrganisationSelect
        aria-label={t.organisation} placeholder={t.moreOrganisations} fixed={[own]} w={260}
        chosen={tenant.id === own.value ? own : { value: tenant.id, label: tenant.name }}
        onChoose={({ value }) => onChoose(value)}
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
