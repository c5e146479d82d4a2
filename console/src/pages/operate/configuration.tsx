/** Shows the gateway's configuration in force, and when it was applied. */

import { Alert, Button, Code, Collapse, Text } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import type { components } from "#api/gateway";
import { useId } from "react";

import { Panel } from "#/components/panel";
import { Words } from "#/components/words";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

export function Configuration({ config }: { config: components["schemas"]["ConfigBody"] }) {
  const t = useStrings(strings).config;
  const format = useFormat();
  const id = useId();
  const [isShown, { toggle }] = useDisclosure();
  return (
    <Panel
      title={t.title}
      aside={config.applied_at !== null && (
        <Text size="xs" c="dimmed" title={format.time(config.applied_at)}>{t.applied(format.ago(config.applied_at))}</Text>
      )}
    >
      {config.is_newest_rejected && <Alert color="red" role="alert" mb="sm"><Words>{t.rejected}</Words></Alert>}
      <Text size="sm" mb="sm"><Words>{t.about}</Words></Text>
      <Button variant="default" size="xs" onClick={toggle} aria-expanded={isShown} aria-controls={id}>
        {isShown ? t.hide : t.show}
      </Button>
      <Collapse expanded={isShown} id={id}>
        <Code block mt="sm" tabIndex={0} mah={480} style={{ overflow: "auto" }} aria-label={t.title} role="region">
          {JSON.stringify(config.values, null, 2)}
        </Code>
      </Collapse>
    </Panel>
  );
}
