/** Signs in through an OpenID provider: the code flow, to which the provider sends people back. */

import { Anchor, Center, Loader, Stack, Text } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { Link, useLocation } from "wouter";

import { accounts, body } from "#/api/client";
import { signIn } from "#/api/session";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";
import { Frame } from "#/pages/sign-in/frame";
import { strings } from "#/pages/sign-in/strings";

/** Where providers send people back to; it is to be among the `redirect_uris` of a provider. */
export const REDIRECT_URI = `${location.origin}/console/oidc`;
const STATE = "moyin.oidc";
const PAGE = "moyin.oidc.page";

export async function beginOpenId(provider: string): Promise<void> {
  const begun = await body(accounts.POST("/oidc/begin", { body: { provider, redirect_uri: REDIRECT_URI } }));
  // Shows on return that this browser began, so that nobody is signed in to the account of another.
  sessionStorage.setItem(STATE, begun.state);
  sessionStorage.setItem(PAGE, location.pathname + location.search + location.hash);
  location.assign(begun.authorization_url);
}

// Effects run twice in development; a code is good for one use.
let finishing: Promise<void> | undefined;

async function finish(code: string, state: string): Promise<void> {
  const session = await body(accounts.POST("/oidc/finish", { body: { code, state } }));
  await signIn({ refresh_token: session.refresh_token });
}

export function OpenIdReturn() {
  const t = useStrings(strings);
  const queries = useQueryClient();
  const [, navigate] = useLocation();
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    if (finishing === undefined) {
      const answer = new URLSearchParams(location.search);
      const [code, state, refusal] = [answer.get("code"), answer.get("state"), answer.get("error")];
      const begun = sessionStorage.getItem(STATE);
      // Some providers leave the state out of a refusal, which signs nobody in.
      const isOurs = begun !== null && (state === begun || (state === null && refusal !== null));
      sessionStorage.removeItem(STATE);
      // The code is not to stay in the browser's history.
      history.replaceState(null, "", location.pathname);
      if (!isOurs) finishing = Promise.reject(new Error(t.foreign));
      else if (code === null || state === null) finishing = Promise.reject(new Error(t.refused(refusal ?? "?")));
      else finishing = finish(code, state);
    }
    finishing
      .then(() => queries.invalidateQueries({ queryKey: ["caller"] }))
      .then(() => navigate(`~${sessionStorage.getItem(PAGE) ?? "/console/"}`, { replace: true }))
      .catch(setError);
  }, [t, queries, navigate]);
  return (
    <Frame title={t.returning}>
      {error === null ? <Center><Loader aria-label={t.returning} /></Center> : (
        <Stack>
          {"code" in error ? <ErrorAlert error={error} /> : <Text role="alert" size="sm">{error.message}</Text>}
          <Anchor component={Link} href="/" size="sm">{t.back}</Anchor>
        </Stack>
      )}
    </Frame>
  );
}
