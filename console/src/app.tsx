/** Shows the sign-in page, or the frame with the page of the address. */

import { AppShell, Burger, Center, Group, Loader, NavLink, ScrollArea, Title } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { useQueryClient } from "@tanstack/react-query";
import { Component, memo, type ReactNode, useEffect } from "react";
import { Link, Redirect, Route, Switch, useLocation } from "wouter";

import { type Caller, hasScope, keepSession, useCaller, watchSession } from "#/api/session";
import { AccountMenu } from "#/components/account-menu";
import { ErrorAlert } from "#/components/error-alert";
import { useFocusKeeper, useFocusOnNavigation } from "#/components/focus";
import { LoadedPage } from "#/components/loaded-page";
import { NotFound } from "#/components/not-found";
import { useLanguage, useStrings } from "#/language";
import { type Page, PAGES, prefetchPage, preloadInRest, preloadPage } from "#/pages";
import { SignIn } from "#/pages/sign-in";
import { OpenIdReturn } from "#/pages/sign-in/openid";
import { ResetPassword } from "#/pages/sign-in/reset";
import { strings } from "#/strings";

export function App() {
  return (
    <Switch>
      <Route path="/oidc"><OpenIdReturn /></Route>
      <Route path="/reset"><ResetPassword /></Route>
      <Route><Console /></Route>
    </Switch>
  );
}

function Console() {
  const caller = useCaller();
  const queries = useQueryClient();
  useEffect(() => watchSession(queries), [queries]);
  // A caller who is known stays so while the gateway cannot be asked again.
  if (caller.data === undefined) {
    return (
      <Center mih="100vh" p="md">{caller.error ? <ErrorAlert error={caller.error} /> : <Loader />}</Center>
    );
  }
  return caller.data === null ? <SignIn /> : <Frame key={caller.data.keyId} caller={caller.data} />;
}

function Frame({ caller }: { caller: Caller }) {
  const t = useStrings(strings);
  const { language } = useLanguage();
  const [opened, { toggle, close }] = useDisclosure();
  // Pictures, downloads and event streams cannot renew a session; a key's cookie is not renewed.
  const isPerson = caller.account !== null;
  useEffect(() => (isPerson ? keepSession() : undefined), [isPerson]);
  const [location] = useLocation();
  useFocusKeeper();
  useFocusOnNavigation(location);
  const pages = PAGES.filter(({ scopes, reads }) =>
    scopes.some((scope) => hasScope(caller, scope)) && (reads === undefined || hasScope(caller, reads)));
  useEffect(() => preloadInRest(pages), []);
  const current = pages.find((page) => location === page.path || location.startsWith(`${page.path}/`));
  useEffect(() => {
    document.title = current ? `${current.title[language]} · Moyin` : "Moyin";
    close();
  }, [current, language, location, close]);
  return (
    <AppShell
      header={{ height: 52 }}
      navbar={{ width: 210, breakpoint: "sm", collapsed: { mobile: !opened } }}
      padding="md"
    >
      <a href="#content" className="skip-link">{t.skip}</a>
      <AppShell.Header>
        <Group h="100%" px="md" justify="space-between" wrap="nowrap">
          <Group gap="xs" wrap="nowrap">
            <Burger opened={opened} onClick={toggle} hiddenFrom="sm" size="sm" aria-label={t.menu} />
            <Title order={1} size="h4">Moyin</Title>
          </Group>
          <AccountMenu caller={caller} />
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="xs" aria-label={t.pages}>
        <ScrollArea>
          {pages.map((page) => (
            <PageLink key={page.path} page={page} isCurrent={page === current} />
          ))}
          {hasScope(caller, "jobs:read") && (
            <NavLink component="a" href="/comfy/" label={t.comfyui} target="_blank" rel="noopener" />
          )}
        </ScrollArea>
      </AppShell.Navbar>
      <AppShell.Main id="content" tabIndex={-1}>
        <Boundary location={location}>
          <Switch>
            <Route path="/"><Redirect to={pages[0]?.path ?? "/account"} replace /></Route>
            {pages.map((page) => (
              // Switch reads the paths of its own children only.
              <Route key={page.path} path={page.path} nest={page.nested}><LoadedPage key={page.path} page={page} /></Route>
            ))}
            <Route><NotFound /></Route>
          </Switch>
        </Boundary>
      </AppShell.Main>
    </AppShell>
  );
}

/** Drawn again only when its page is opened or left, and not with every other page. */
const PageLink = memo(function PageLink({ page, isCurrent }: { page: Page; isCurrent: boolean }) {
  const { language } = useLanguage();
  const queries = useQueryClient();
  const preload = () => preloadPage(page);
  const prefetch = () => prefetchPage(page, queries);
  return (
    <NavLink
      component={Link} href={page.path} label={page.title[language]}
      leftSection={<page.icon size={18} stroke={1.6} aria-hidden />}
      onPointerEnter={preload} onFocus={preload} onPointerDown={prefetch} onClick={prefetch}
      active={isCurrent} aria-current={isCurrent ? "page" : undefined}
    />
  );
});

/** Shows a defect of a page in its place until another is opened, so that the rest stays usable. */
class Boundary extends Component<{ location: string; children: ReactNode }, { error: Error | null }> {
  override state: { error: Error | null } = { error: null };
  static getDerivedStateFromError(error: Error) {
    return { error };
  }
  override componentDidUpdate({ location }: { location: string }) {
    if (location !== this.props.location && this.state.error) this.setState({ error: null });
  }
  override render() {
    return this.state.error ? <ErrorAlert error={this.state.error} /> : this.props.children;
  }
}
