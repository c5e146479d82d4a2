/** Links to the web interfaces of Temporal and Ray, where their addresses are configured. */

import { Anchor, Text } from "@mantine/core";

import { isLoopback, useOperatorLinks } from "#/components/operator-links";
import { type Fact, Facts, Panel } from "#/components/panel";
import { useStrings } from "#/language";

import { strings } from "./strings";

export function Links() {
  const t = useStrings(strings).links;
  const links = useOperatorLinks();
  if (!links?.temporal && !links?.ray) return null;
  const facts: Fact[] = [
    [t.temporal, links.temporal && <Address address={links.temporal} />],
    [t.ray, links.ray && <Address address={links.ray} />],
  ];
  return <Panel title={t.title}><Facts facts={facts} /></Panel>;
}

function Address({ address }: { address: string }) {
  const t = useStrings(strings).links;
  return (
    <>
      <Anchor href={address} target="_blank" rel="noreferrer" size="sm">{address}</Anchor>
      {isLoopback(address) && <Text size="xs" c="dimmed">{t.loopback}</Text>}
    </>
  );
}
