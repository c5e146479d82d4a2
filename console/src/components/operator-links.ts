/** Reads where operators find the web interfaces of Temporal and Ray. */

import { useQuery } from "@tanstack/react-query";

import { body, gateway } from "#/api/client";
import { hasScope, useCaller } from "#/api/session";

/** Return the addresses, which other callers do not get. */
export function useOperatorLinks() {
  const { data: caller } = useCaller();
  const links = useQuery({
    queryKey: ["cluster-links"],
    enabled: caller ? hasScope(caller, "operator") : false,
    staleTime: Infinity,
    queryFn: () => body(gateway.GET("/cluster/links")),
  });
  return links.data;
}

/** Return whether an address opens on the machine of the gateway only. */
export function isLoopback(address: string): boolean {
  const { hostname } = new URL(address);
  return hostname === "localhost" || hostname === "[::1]" || hostname.startsWith("127.");
}
