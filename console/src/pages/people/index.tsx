/** Manages the members, keys and limits of an organisation, and shows its audit log. */

import { Skeleton, Stack, Tabs } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useLocation, useSearch } from "wouter";

import { accounts, body } from "#/api/client";
import { isNotFound } from "#/api/errors";
import { hasScope, useCaller } from "#/api/session";
import { Keys } from "#/components/access/keys";
import { NotFound } from "#/components/not-found";
import { PageHeader } from "#/components/page-header";
import { useStrings } from "#/language";
import { Audit } from "#/pages/people/audit";
import { Members } from "#/pages/people/members";
import { OrganisationChoice } from "#/pages/people/organisation-choice";
import { strings } from "#/pages/people/strings";
import { TenantLimits } from "#/pages/people/tenant-limits";

export default function PeoplePage() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const [location, navigate] = useLocation();
  const chosen = new URLSearchParams(useSearch()).get("organisation") || null;
  const isOperator = caller ? hasScope(caller, "operator") : false;
  const organisation = isOperator ? chosen : caller?.account?.organisation ?? null;
  const { data: found, error, isLoading } = useQuery({
    queryKey: ["organisation", organisation],
    enabled: caller != null && (isOperator || hasScope(caller, "org:read")) && organisation !== null && organisation.startsWith("org_"),
    staleTime: 60_000,
    queryFn: ({ signal }) => body(accounts.GET("/organisations/{organisation}", {
      params: { path: { organisation: organisation ?? "" } }, signal,
    })),
  });
  if (!caller) return null;
  const administers = isOperator || hasScope(caller, "org:admin");
  const id = organisation ?? caller.owner;
  const tenant = { id, name: found?.name ?? id };
  const tabs = [
    ["members", hasScope(caller, "org:read") || isOperator],
    ["keys", hasScope(caller, "keys")],
    ["limits", administers],
    ["audit", administers],
  ] as const;
  const shown = tabs.filter(([, allowed]) => allowed).map(([name]) => name);
  const current = shown.find((name) => location === `/${name}`) ?? shown[0] ?? "members";
  const choose = (tenantId: string) => navigate(`/${current}?organisation=${encodeURIComponent(tenantId)}`);
  return (
    <Stack gap={0}>
      <PageHeader title={t.title}>
        {isOperator && <OrganisationChoice caller={caller} tenant={tenant} onChoose={choose} />}
      </PageHeader>
      {isNotFound(error) ? <NotFound title={t.noSuchOrganisation}>{t.noSuchOrganisationHint}</NotFound> : isLoading ? <Skeleton height={240} /> : (
        <Tabs
          value={current} keepMounted={false}
          onChange={(name) => navigate(`/${name}${chosen === null ? "" : `?organisation=${encodeURIComponent(chosen)}`}`)}
        >
          <Tabs.List mb="md" aria-label={t.sections}>
            {shown.map((name) => <Tabs.Tab key={name} value={name}>{t[name]}</Tabs.Tab>)}
          </Tabs.List>
          <Tabs.Panel value="members"><Members key={tenant.id} caller={caller} tenant={tenant} /></Tabs.Panel>
          <Tabs.Panel value="keys"><Keys key={tenant.id} caller={caller} owner={tenant.id} /></Tabs.Panel>
          <Tabs.Panel value="limits"><TenantLimits key={tenant.id} caller={caller} tenant={tenant} /></Tabs.Panel>
          <Tabs.Panel value="audit"><Audit key={tenant.id} caller={caller} tenant={tenant} chosen={chosen !== null} /></Tabs.Panel>
        </Tabs>
      )}
    </Stack>
  );
}
