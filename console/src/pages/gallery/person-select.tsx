/** Chooses whose pictures are shown, among the members that the server finds. */

import { Select } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { accounts, body } from "#/api/client";
import { type Caller, hasScope } from "#/api/session";
import { useStrings } from "#/language";

import { strings } from "./strings";

interface Props {
  caller: Caller;
  /** The id of the person; empty: anybody. */
  value: string;
  onChange: (user: string) => void;
}

const FOUND = 50;

/** Offers nobody but oneself to those who may not list members, and keys of such a tenant nothing. */
export function PersonSelect({ caller, value, onChange }: Props) {
  const t = useStrings(strings);
  const own = caller.account?.id;
  const mayList = caller.owner.startsWith("org_") && hasScope(caller, "org:read");
  const [search, setSearch] = useState("");
  // Not before the pictures.
  const [isReached, setReached] = useState(false);
  const chosen = useQuery({
    queryKey: ["user", value],
    enabled: mayList && value !== "" && value !== own,
    staleTime: 60_000,
    queryFn: ({ signal }) => body(accounts.GET("/users/{user}", { params: { path: { user: value } }, signal })),
  });
  // The id, if there is no such person: the address may have anything.
  const chosenName = value === own ? t.me : chosen.data ? nameOf(chosen.data) : value;
  // The field holds the chosen one's name until somebody types, which searches for nothing.
  const [text] = useDebouncedValue(search === chosenName ? "" : search, 250);
  const members = useQuery({
    queryKey: ["members", caller.owner, "found", text],
    enabled: mayList && isReached,
    queryFn: ({ signal }) => body(accounts.GET("/organisations/{organisation}/members", {
      params: { path: { organisation: caller.owner }, query: { limit: FOUND, search: text } }, signal,
    })),
  });
  if (own === undefined && !mayList) return null;
  const found = members.data?.members.filter(({ id }) => id !== own) ?? [];
  const options = [
    ...(own === undefined ? [] : [{ value: own, label: t.me }]),
    ...found.map((member) => ({ value: member.id, label: nameOf(member) })),
  ];
  if (value !== "" && options.every((option) => option.value !== value)) options.push({ value, label: chosenName });
  return (
    <Select
      label={t.person} placeholder={t.anyone} w={170} clearable searchable data={options} value={value || null}
      onFocus={() => setReached(true)} onSearchChange={setSearch} onChange={(user) => onChange(user ?? "")}
      nothingFoundMessage={t.nobody}
      // The server has searched.
      filter={({ options: all }) => all}
    />
  );
}

function nameOf({ name, email, id }: { name: string; email: string | null; id: string }): string {
  return name || email || id;
}
