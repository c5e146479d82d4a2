import "./mantine";
import "@mantine/notifications/styles.css";
import "./style.css";

import { MantineProvider } from "@mantine/core";
import { Notifications } from "@mantine/notifications";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Router } from "wouter";

import { ApiError } from "#/api/errors";
import { prefetchCaller } from "#/api/session";
import { App } from "#/app";
import { LanguageProvider } from "#/language";
import { preloadAddress } from "#/pages";
import { theme } from "#/theme";

const nonce = document.querySelector<HTMLMetaElement>("meta[name=csp-nonce]")?.content ?? "";
// The library that stops the page behind a dialog from scrolling reads the nonce of its style here.
Object.assign(window, { __webpack_nonce__: nonce });

const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      // Requests that the gateway refuses for a reason are not sent again.
      retry: (count, error) => count < 2 && !(error instanceof ApiError && error.status < 500),
    },
  },
});

const path = location.pathname.replace(/^\/console/, "");
// On these pages a sign-in or a new password changes who it is; an answer from before would be shown afterwards.
if (!["/oidc", "/reset"].includes(path)) prefetchCaller(queries);
preloadAddress(path);

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <MantineProvider theme={theme} defaultColorScheme="auto" getStyleNonce={() => nonce}>
      <QueryClientProvider client={queries}>
        <LanguageProvider>
          <Notifications position="bottom-right" />
          <Router base="/console">
            <App />
          </Router>
        </LanguageProvider>
      </QueryClientProvider>
    </MantineProvider>
  </StrictMode>,
);
