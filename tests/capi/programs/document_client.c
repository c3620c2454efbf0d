#include <errno.h>
#include <stdio.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <unistd.h>
// 到kkuai.com获取最新的库和头文件
#include "kkp2p_sdk.h"
// 程序利用USER1信号
char run_flag = 1;
void set_exit_flag(int sig) {
run_flag = 0;
}
// 输入6个参数
// 侦听的ip、port、指定通信的peer id、和peer id的建连模式、连接描述
// 连接描述是双方约定好的,服务端可以根据连接描述判断连接所使用的协议
int main(int argc, char** argv) {
if (argc < 6) {
printf("usage:%s proxy_ip proxy_port peer_id connect_mode connect_desc\n", argv[0]);
return -1;
}
struct sigaction actions;
memset(&actions, 0, sizeof(actions));
sigemptyset(&actions.sa_mask);
actions.sa_flags = 0;
actions.sa_handler = set_exit_flag ;
sigaction(SIGUSR1,&actions,NULL);
// 初始化p2p服务器的登录ip和端口号信息等
kkp2p_engine_conf_t kkp2p_conf;
memset(&kkp2p_conf, 0, sizeof(kkp2p_engine_conf_t));
kkp2p_conf.login_domain = "124.71.217.198";
kkp2p_conf.login_port = 3080;
kkp2p_conf.lan_search_port = 3549;
kkp2p_conf.max_log_size = 1024*1024*10;
kkp2p_conf.log_path = NULL;
kkp2p_engine_t* g_engine = kkp2p_engine_init(&kkp2p_conf, 5000);
kkp2p_switch_log_level(g_engine, 4);
kkp2p_connect_ctx_t ctx;
memset(&ctx, 0, sizeof(kkp2p_connect_ctx_t));
strncpy(ctx.peer_id, argv[3], 32);
ctx.timeout = 5000;
// 创建tcp类型传输通道
ctx.channel_type = KKP2P_TCP_CHANNEL;
// 0 为自动模式,1为仅p2p模式,2为仅relay模式
ctx.connect_mode = atoi(argv[4]);
// 连接描述,会透传到服务端
// 可以约定参数,比如1为http协议,2为https协议
ctx.connect_desc = atoi(argv[5]);
uint32_t proxyId = 0;
// 启动和peer id进行通信的本地代理服务
int ret = kkp2p_start_proxy(g_engine, argv[1], atoi(argv[2]), &ctx, &proxyId);
if (ret < 0) {
printf("create proxy(%s:%d) to peer %s error.\n",argv[1], atoi(argv[2]), argv[3]);
return -1;
} else {
printf("create proxy(%s:%d) to peer %s success.\n",argv[1], atoi(argv[2]), argv[3]);
}
while(run_flag) {
usleep(100);
}
kkp2p_stop_proxy(g_engine, proxyId);
kkp2p_engine_destroy(g_engine);
return 0;
}
