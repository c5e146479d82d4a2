import { Button, Center } from "@mantine/core";

import { useStrings } from "#/language";
import { strings } from "#/strings";

interface Props {
  list: { hasNextPage: boolean; isFetchingNextPage: boolean; fetchNextPage: () => Promise<unknown> };
}

/** Fetches the next page of a list, if there is one. */
export function MoreButton({ list }: Props) {
  const t = useStrings(strings);
  if (!list.hasNextPage) return null;
  return (
    <Center>
      <Button variant="default" loading={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>{t.more}</Button>
    </Center>
  );
}
