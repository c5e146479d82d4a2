/** Shows the models: of text with their back ends, quality and routing, and those of ComfyUI. */

import { Tabs } from "@mantine/core";
import { useSearchParams } from "wouter";

import { hasScope, useCaller } from "#/api/session";
import { PageHeader } from "#/components/page-header";
import { useStrings } from "#/language";

import { Backends } from "./backends";
import { ComfyUI } from "./comfyui";
import { DryRun } from "./dry-run";
import { ModelList } from "./list";
import { Quality } from "./quality";
import { strings } from "./strings";

const TABS = [
  { name: "list", scopes: ["text"], component: ModelList },
  { name: "backends", scopes: ["operator", "org:admin"], component: Backends },
  { name: "quality", scopes: ["text"], component: Quality },
  { name: "route", scopes: ["text"], component: DryRun },
  { name: "comfyui", scopes: ["jobs:read"], component: ComfyUI },
] as const;

export default function ModelsPage() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const [search, setSearch] = useSearchParams();
  if (!caller) return null;
  const tabs = TABS.filter(({ scopes }) => scopes.some((scope) => hasScope(caller, scope)));
  const wanted = search.get("tab");
  const shown = tabs.find(({ name }) => name === wanted) ?? tabs[0];
  return (
    <>
      <PageHeader title={t.title} />
      <Tabs
        value={shown?.name ?? null} keepMounted={false}
        onChange={(name) => name !== null && setSearch({ tab: name }, { replace: true })}
      >
        <Tabs.List mb="md" aria-label={t.title}>
          {tabs.map(({ name }) => <Tabs.Tab key={name} value={name}>{t.tabs[name]}</Tabs.Tab>)}
        </Tabs.List>
        {tabs.map(({ name, component: Panel }) => (
          <Tabs.Panel key={name} value={name}><Panel /></Tabs.Panel>
        ))}
      </Tabs>
    </>
  );
}
