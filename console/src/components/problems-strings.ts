import type { Problem } from "#/api/cluster";
import type { Catalogue, Format } from "#/language";

const en = {
  allWell: "All is well",
  allWellMore: "Every service, pool, back end and route works.",
  since: (ago: string) => `began ${ago}`,
  /** Kinds of problems by their codes. */
  kinds: {
    service_down: "Service down",
    ray_not_responding: "Ray does not respond",
    disk_nearly_full: "Disk nearly full",
    app_unhealthy: "App unhealthy",
    config_rejected: "Configuration ignored",
    pool_not_responding: "Pool does not respond",
    pool_without_renderer: "Pool without a renderer",
    renderer_failed: "Renderer down",
    renderer_restarts: "Renderer restarts again and again",
    memory_kill: "Ended for want of memory",
    long_wait: "Renders wait long",
    backend_down: "Back end down",
    backend_breaker_open: "Back end fails its calls",
    route_without_upstream: "Route without a healthy upstream",
    template_invalid: "Template file not valid",
  } as Record<string, string>,
  /** What is wrong, where the server's words are in another language. */
  messages: {} as Record<string, (problem: Problem, format: Format) => string>,
  /** What to do, where the server's words are in another language. */
  advice: {} as Record<string, string>,
};

const failure = (error: unknown) => (error ? `（${String(error)}）` : "");

/** Words about problems of the cluster; where a language has none, they are the server's. */
export const strings: Catalogue<typeof en> = {
  en,
  ja: {
    allWell: "問題はありません",
    allWellMore: "すべてのサービス、プール、バックエンド、ルートが正常に動作しています。",
    since: (ago) => `${ago}に発生`,
    kinds: {
      service_down: "サービス停止",
      ray_not_responding: "Ray が応答しません",
      disk_nearly_full: "ディスクの空きがわずかです",
      app_unhealthy: "アプリの異常",
      config_rejected: "設定が適用されていません",
      pool_not_responding: "プールが応答しません",
      pool_without_renderer: "使えるレンダラーがないプール",
      renderer_failed: "レンダラー停止",
      renderer_restarts: "レンダラーが再起動を繰り返しています",
      memory_kill: "メモリ不足による終了",
      long_wait: "レンダーの待ち時間が長くなっています",
      backend_down: "バックエンド停止",
      backend_breaker_open: "バックエンドの呼び出しが失敗しています",
      route_without_upstream: "正常なアップストリームがないルート",
      template_invalid: "テンプレートファイルの誤り",
    },
    messages: {
      service_down: ({ subject }) => `サービス ${subject} が応答しません。`,
      ray_not_responding: () => "Ray からノードの一覧を取得できません。",
      disk_nearly_full: ({ parameters }, format) =>
        `ゲートウェイのデータフォルダーのディスクの空きは ${format.bytes(Number(parameters.free_bytes))} です。`,
      app_unhealthy: ({ subject, parameters }) => `Ray Serve によると、アプリ ${subject} の状態は ${parameters.status} です。`,
      config_rejected: ({ subject }) => `アプリ ${subject} は、最新の設定が正しくないため無視し、以前の設定で動作しています。`,
      pool_not_responding: ({ subject }) => `レンダープール ${subject} が応答しません。`,
      pool_without_renderer: ({ subject, parameters }) =>
        `レンダープール ${subject} に使えるレンダラーがありません${failure(parameters.error)}。`,
      renderer_failed: ({ subject, parameters }) => `レンダラー ${subject} は使えません${failure(parameters.error)}。`,
      renderer_restarts: ({ subject, parameters }) => `レンダラー ${subject} は 10 分間に ${parameters.losses} 回失われました。`,
      memory_kill: ({ subject, parameters }, format) =>
        parameters.by === "kernel"
          ? `メモリ（${format.bytes(Number(parameters.total_bytes))}）を使い切ったため、カーネルが ${subject} を終了しました。`
          : `空きメモリが ${format.bytes(Number(parameters.total_bytes))} 中 ${
              format.bytes(Number(parameters.available_bytes))} になったため、Moyin が ${subject} を終了しました。`,
      long_wait: ({ subject, parameters }, format) =>
        `プール ${subject} では ${format.time(String(parameters.waiting_since))} からレンダーが待っています（待機中 ${parameters.queued} 件）。`,
      backend_down: ({ subject }) => `バックエンド ${subject} がヘルスチェックに合格していません。`,
      backend_breaker_open: ({ subject }) => `バックエンド ${subject} の呼び出しが繰り返し失敗したため、試行のみ送っています。`,
      route_without_upstream: ({ subject }) => `プロキシのルート ${subject} に正常なアップストリームがありません。`,
      template_invalid: ({ subject, parameters }) => `テンプレートファイル ${subject} を読み込めません${failure(parameters.error)}。`,
    },
    advice: {
      service_down: "サービスを起動し直し、接続先の設定（データベース、Temporal、Valkey、ファイル保存先）を確認してください。",
      ray_not_responding: "Ray のヘッドノードのログを確認してください。",
      disk_nearly_full: "`moyin prune` などで古いファイルを削除するか、容量を増やしてください。",
      app_unhealthy: "`serve status` で原因を確認し、設定を直して `moyin deploy` を実行してください。",
      config_rejected: "`moyin doctor` で誤りを確認し、修正して `moyin deploy` を実行してください。",
      pool_not_responding: "`serve status` で該当する render アプリを確認してください。その間、ジョブは待機します。",
      pool_without_renderer: "`moyin logs` でレンダラーが起動しない原因を確認し、空いている GPU や CPU があるか確かめてください。",
      renderer_failed: "`moyin logs` でレンダラーのログを確認してください。自動的に再起動されます。",
      renderer_restarts: "`moyin logs` で終了の原因（メモリ不足やカスタムノードなど）を確認してください。",
      memory_kill:
        "メモリに余裕ができると再起動し、レンダーはやり直されます。頻繁に起きる場合は、同じノードの他のプログラムを確認するか、プロセスの数を減らしてください。",
      long_wait: "プールのレンダラーを増やすか、別のプールにレンダーを送ってください。",
      backend_down: "バックエンドのサーバー、アドレス、API キーを確認してください。",
      backend_breaker_open: "プロバイダーの状況とキーを確認してください。しばらくすると自動的に再試行されます。",
      route_without_upstream: "ルートのアップストリームのサービスを起動するか、アドレスを修正してください。",
      template_invalid: "ファイルを修正してください。数秒後に読み直されます。それまでは、以前の正しい版があればそれが使われます。",
    },
  },
};
