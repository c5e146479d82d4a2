import type { Catalogue } from "#/language";

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
    long_wait: "Renders wait long",
    backend_down: "Back end down",
    backend_breaker_open: "Back end fails its calls",
    route_without_upstream: "Route without a healthy upstream",
  } as Record<string, string>,
  /** What to do, where the server's words are in another language. */
  advice: {} as Record<string, string>,
};

/** Words about problems of the cluster; the details are the server's. */
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
      long_wait: "レンダーの待ち時間が長くなっています",
      backend_down: "バックエンド停止",
      backend_breaker_open: "バックエンドの呼び出しが失敗しています",
      route_without_upstream: "正常なアップストリームがないルート",
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
      long_wait: "プールのレンダラーを増やすか、別のプールにレンダーを送ってください。",
      backend_down: "バックエンドのサーバー、アドレス、API キーを確認してください。",
      backend_breaker_open: "プロバイダーの状況とキーを確認してください。しばらくすると自動的に再試行されます。",
      route_without_upstream: "ルートのアップストリームのサービスを起動するか、アドレスを修正してください。",
    },
  },
};
