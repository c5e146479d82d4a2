import { Button, Group } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useState } from "react";

import { accounts } from "#/api/client";
import { forgetCaller } from "#/api/session";
import { Confirm } from "#/components/confirm";
import { useStrings } from "#/language";
import { strings } from "#/pages/account/strings";

/** Closes the account of a player. */
export function CloseAccount() {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [asking, setAsking] = useState(false);
  const close = async () => {
    await accounts.DELETE("/me");
    forgetCaller(queries);
  };
  return (
    <Group>
      <Button variant="subtle" color="red" onClick={() => setAsking(true)}>{t.close}</Button>
      <Confirm opened={asking} onClose={() => setAsking(false)} title={t.closeTitle} action={t.close} onConfirm={close}>
        {t.closeHint}
      </Confirm>
    </Group>
  );
}
