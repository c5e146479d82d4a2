/** Lists jobs, and shows one. */

import { Route, Switch } from "wouter";

import { NotFound } from "#/components/not-found";

import { JobPage } from "./job";
import { JobList } from "./list";

export default function JobsPage() {
  return (
    <Switch>
      <Route path="/"><JobList /></Route>
      <Route path="/:id">{({ id }) => <JobPage key={id} id={id} />}</Route>
      <Route><NotFound /></Route>
    </Switch>
  );
}
