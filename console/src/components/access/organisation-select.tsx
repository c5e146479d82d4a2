/** Lets operators choose a tenant: among organisations that the server searches, and fixed ones. */

import { Select, type SelectProps } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { accounts, body } from "#/api/client";

interface Option {
  value: string;
  label: string;
}

interface Props extends Omit<SelectProps, "data" | "value" | "onChange"> {
  /** Offered besides, whatever is searched for. */
  fixed: readonly Option[];
  chosen: Option;
  onChoose: (chosen: Option) => void;
}

export function OrganisationSelect({ fixed, chosen, onChoose, ...props }: Props) {
  const [search, setSearch] = useState("");
  // The field holds the chosen one's label until somebody types, which searches for nothing.
  const [text] = useDebouncedValue(search === chosen.label ? "" : search, 250);
  const { data } = useQuery({
    queryKey: ["organisations", text],
    queryFn: ({ signal }) => body(accounts.GET("/organisations", {
      params: { query: { limit: 50, search: text } }, signal,
    })),
  });
  const found = data?.organisations.map(({ id, name }) => ({ value: id, label: name })) ?? [];
  const options = [...fixed, ...found.filter((option) => fixed.every(({ value }) => value !== option.value))];
  // The chosen one stays among them.
  if (options.every((option) => option.value !== chosen.value)) options.push(chosen);
  return (
    <Select
      data={options} value={chosen.value} searchable onSearchChange={setSearch} allowDeselect={false} maxDropdownHeight={320}
      // The server has searched.
      filter={({ options: all }) => all}
      onChange={(value) => {
        const option = options.find((one) => one.value === value);
        if (option) onChoose(option);
      }}
      {...props}
    />
  );
}
